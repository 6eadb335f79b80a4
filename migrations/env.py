"""Alembic's environment: one transaction per revision, a version table of this project's own."""

from __future__ import annotations

import logging
from logging.config import fileConfig
from pathlib import Path

from alembic import context

from bge_pipeline.database.connection import Database
from bge_pipeline.database.pooler import require_session
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.embedding.model_folder import recorded_name
from bge_pipeline.errors import ConfigurationError, ModelUnavailable, TargetTableError
from bge_pipeline.phases.consent import rolled_back
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.revisions import explained
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline.space import EmbeddingSpace

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
        database = Database.from_settings(settings)
    with database:
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
    is_part = state.table.target.condition is not None  # whose columns are never exchanged
    is_over = state.new is not None if is_part else state.phase in ("swapped", "retired")
    column = state.new or state.table.embedding
    space = space_of(column)
    if is_over and space is not None and is_wanted(space, settings):
        return
    logger.warning(
        "Alembic is at its last revision, but %s is in phase %s, its column %r holds vectors of %s, and the settings name "
        "%s (%d dimensions): run `alembic stamp 004` and `alembic upgrade head`; "
        "every revision sees for itself what is left to do",
        state.table.target,
        state.phase,
        column.name,
        space or "a model not recorded",
        settings.embedding_model,
        settings.embedding_dimensions,
    )


def is_wanted(space: EmbeddingSpace, settings: Settings) -> bool:
    """Whether recorded vectors are those of the model that the settings name.

    A model of the hub is not looked for under the name that was recorded, since looking may download it.
    """
    names = (settings.embedding_model, recorded_name(settings.embedding_model))
    is_named = space.model in names and space.dimensions == settings.embedding_dimensions
    if is_named and not Path(space.model).expanduser().is_dir():
        return True
    try:
        return configured_space(settings).is_same_as(space)
    except (ModelUnavailable, ConfigurationError):
        return is_named


if context.is_offline_mode():
    print_script()
else:
    migrate_database()
