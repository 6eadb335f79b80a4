"""Alembic's environment: one transaction per revision, a version table of this project's own."""

from __future__ import annotations

import logging
from logging.config import fileConfig

from alembic import context

from bge_pipeline.database.connection import Database
from bge_pipeline.database.pooler import require_session
from bge_pipeline.errors import TargetTableError
from bge_pipeline.phases.consent import rolled_back
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.revisions import explained
from bge_pipeline.settings import Settings, load_settings

logger = logging.getLogger("bge_pipeline.migrations")

VERSION_TABLE = "bge_pipeline_alembic_version"
"""Not `alembic_version`, which belongs to the application and, in Dagster's database, to Dagster."""

# A file of the user's own may name the revisions and leave logging as it is.
if context.config.config_file_name is not None and context.config.file_config.has_section("loggers"):
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
    with explained():
        settings = load_settings()
    with Database.from_settings(settings) as database:
        if goes_somewhere():
            with explained():
                require_session(database)
        run_revisions(database, settings)


def goes_somewhere() -> bool:
    """Whether the command has a revision to go to: upgrade, downgrade and stamp have, current has none."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def run_revisions(database: Database, settings: Settings) -> None:
    """Run them on one connection, and compare Alembic's books with the table."""
    with explained(), database.lent() as connection:
        context.configure(connection=connection, version_table=VERSION_TABLE, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
        if context.get_context().get_current_revision() == context.get_head_revision():
            compare_books(database, settings)


def compare_books(database: Database, settings: Settings) -> None:
    """Say so when Alembic has nothing left to do and the table has: another road went back, or a new model is wanted."""
    try:
        state = require_table(Migration(database, settings))
    except TargetTableError:
        return  # nothing to compare with; a revision that needs the table says so itself
    if (went_back := rolled_back(state.new)) is not None:
        logger.warning(
            "Alembic is at its last revision, but search on %s was rolled back at %s. To go forward again, `alembic stamp 004` "
            "and FORWARD_AFTER_ROLLBACK=%s alembic upgrade head",
            state.table.target,
            went_back,
            went_back,
        )
        return
    dimensions = state.table.embedding.dimensions
    if state.phase in ("swapped", "retired") and dimensions == settings.embedding_dimensions:
        return
    logger.warning(
        "Alembic is at its last revision, but %s is in phase %s with %s dimensions of the %d wanted: "
        "run `alembic stamp 004` and `alembic upgrade head`; every revision sees for itself what is left to do",
        state.table.target,
        state.phase,
        dimensions,
        settings.embedding_dimensions,
    )


if context.is_offline_mode():
    print_script()
else:
    migrate_database()
