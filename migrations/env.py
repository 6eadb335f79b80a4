"""Alembic's environment: one transaction per revision, a version table of this project's own."""

from __future__ import annotations

from logging.config import fileConfig

from alembic import context

from bge_pipeline.database.connection import Database
from bge_pipeline.settings import load_settings

VERSION_TABLE = "bge_pipeline_alembic_version"
"""Not `alembic_version`, which belongs to the application and, in Dagster's database, to Dagster."""

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)


def print_script() -> None:
    """`alembic upgrade head --sql`: the statements for a reviewer, without a database."""
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table=VERSION_TABLE,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_database() -> None:
    """Run the revisions on the database of DATABASE_URL, or on the embedded one."""
    with Database.from_settings(load_settings()) as database, database.engine.connect() as connection:
        context.configure(connection=connection, version_table=VERSION_TABLE, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    print_script()
else:
    migrate_database()
