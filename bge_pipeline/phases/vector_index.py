"""The vector index that the settings ask for, on the column that a migration fills."""

from __future__ import annotations

from collections.abc import Callable

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.catalog import Column
from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_build import BuildResult, build_concurrently
from bge_pipeline.database.indexes import (
    MEBIBYTE,
    IndexPlan,
    create_index_statement,
    plan_index,
)
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.space import EmbeddingSpace
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.settings import Settings


def build_index(
    database: Database, settings: Settings, *, on_progress: Callable[[BuildProgress], None] | None = None
) -> BuildResult:
    """Build the vector index on the column that the migration fills, unless it is there and valid."""
    target = TargetTable.from_settings(settings)
    with database.autocommit() as connection:
        column, space = filled_column(read_state(connection, target))
        rows = int(connection.execute(target.sql("SELECT count(*) FROM {table}")).scalar_one())
    plan = plan_vector_index(settings, space, rows)
    name = target.vector_index(target.column_for(space.dimensions), space.fingerprint, plan.method)
    statement = create_index_statement(target, column.name, name, plan)
    result = build_concurrently(
        database,
        target,
        name,
        statement,
        column=column.name,
        memory_bytes=plan.memory_bytes,
        on_progress=on_progress,
    )
    with database.autocommit() as connection:
        connection.execute(target.sql("ANALYZE {table} ({column})", column=column.name))
    return result


def plan_vector_index(settings: Settings, space: EmbeddingSpace, rows: int) -> IndexPlan:
    """The vector index that the settings ask for on a table of `rows` rows."""
    return plan_index(
        rows,
        space.dimensions,
        method=settings.index_method,
        element=settings.index_element,
        lists=settings.index_lists,
        m=settings.index_m,
        ef_construction=settings.index_ef_construction,
        max_memory_bytes=settings.index_max_memory_mb * MEBIBYTE if settings.index_max_memory_mb else None,
    )


def filled_column(state: MigrationState) -> tuple[Column, EmbeddingSpace]:
    """The column that the migration fills, and its recorded embedding space.

    Raises:
        PhaseError: there is no such column, or nothing is recorded with it.
    """
    column = state.filled
    space = space_of(column)
    if space is None:
        raise PhaseError(f"column {column.name!r} of {state.table.target} has no embedding space recorded")
    return column, space
