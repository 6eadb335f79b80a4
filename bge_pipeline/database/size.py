"""How much disk a table takes."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.target import TargetTable


def table_bytes(connection: Connection, target: TargetTable) -> int:
    """Size of the table with its indexes and out-of-line values."""
    statement = target.sql("SELECT pg_total_relation_size(CAST(:name AS regclass))")
    return int(connection.execute(statement, {"name": str(target)}).scalar_one())
