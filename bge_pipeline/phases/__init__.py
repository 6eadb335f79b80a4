"""The acts of a migration: expand, backfill, swap, roll back, retire, plan, status. Knows no Dagster.

Each act is one function; the CLI, the Alembic revisions and the Dagster assets call the same one.
"""
