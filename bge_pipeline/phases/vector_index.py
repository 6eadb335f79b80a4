"""The vector index that the settings ask for, on the column that a migration fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.catalog import Column
from bge_pipeline.database.index_build import BuildResult
from bge_pipeline.database.index_on_partitions import IndexRecipe, build_index_on
from bge_pipeline.database.indexes import (
    HNSW_EF_CONSTRUCTION,
    HNSW_M,
    MEBIBYTE,
    MOST_DIMENSIONS_OF_VECTOR,
    IndexPlan,
    IndexShape,
    create_index_statement,
    plan_index,
    vector_indexes_on,
)
from bge_pipeline.database.partition_indexes import serving_indexes
from bge_pipeline.database.partitions import stored_tables
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.settings import IndexSettings
from bge_pipeline.space import EmbeddingSpace
from bge_pipeline.telemetry.observed import observed


@observed("index")
def build_index(
    migration: Migration, *, on_progress: Callable[[BuildProgress], None] | None = None
) -> tuple[BuildResult, IndexPlan]:
    """Build the vector index on the column that the migration fills, unless one of its shape is there and valid."""
    target = migration.target
    with migration.database.autocommit() as connection:
        state = read_state(connection, target)
        column, space = filled_column(state)
        resembled = index_to_resemble(connection, state)
        # By which rows there are, of a large table read for minutes, no index is told from another.
        plan = plan_vector_index(migration.settings, space, state.table.estimated_rows, resembled, column.type_name)
        for index in vector_indexes_on(connection, state.table.oid, column.number):
            if index.valid and _is_of(IndexShape.of(index.definition), plan):
                return BuildResult(index.name, False, 0.0, index.bytes, 0), plan
        plans = {
            table: plan_vector_index(
                migration.settings, space, _rows_of(connection, table), resembled, column.type_name
            )
            for table in stored_tables(connection, target)
        }
    plan = max(plans.values(), key=lambda one: (one.memory_bytes, one.lists), default=plan)
    recipe = IndexRecipe(
        name=lambda table: table.vector_index(target.column_for(space.dimensions), space.fingerprint, plan.method),
        statement=lambda table, name, head: create_index_statement(
            table, column.name, name, plans.get(table, plan), head=head
        ),
        column=column.name,
        memory_bytes=plan.memory_bytes,
        workers=migration.settings.index_build_workers,
    )
    result = build_index_on(migration.database, migration.settings, target, recipe, on_progress=on_progress)
    with migration.database.autocommit() as connection:
        connection.execute(target.sql("ANALYZE {table} ({column})", column=column.name))
    return result, plan


def _rows_of(connection: Connection, table: TargetTable) -> int:
    return int(connection.execute(table.sql("SELECT count(*) FROM {table} WHERE {in_part}")).scalar_one())


def plan_vector_index(
    settings: IndexSettings,
    space: EmbeddingSpace,
    rows: int,
    resembled: IndexShape | None,
    column_type: str = "vector",
) -> IndexPlan:
    """The vector index that the settings ask for on a table of `rows` rows.

    Args:
        settings: INDEX_*.
        space: of the column.
        rows: of the table.
        resembled: what is left to `auto` is as this one has it; None: IVFFlat over float32 and the cosine.
        column_type: `vector` or `halfvec`, which is indexed as float16 in any case.
    """
    like = resembled or IndexShape("ivfflat", "vector", "cosine")
    element = like.element if settings.index_element == "auto" else settings.index_element
    if settings.index_element == "auto" and space.dimensions > MOST_DIMENSIONS_OF_VECTOR:
        element = "halfvec"
    if column_type == "halfvec":
        element = "halfvec"
    planned = plan_index(
        rows,
        space.dimensions,
        method=like.method if settings.index_method == "auto" else settings.index_method,
        element=element,
        metric=like.metric,
        lists=settings.index_lists,
        m=settings.index_m or like.m or HNSW_M,
        ef_construction=settings.index_ef_construction or like.ef_construction or HNSW_EF_CONSTRUCTION,
        max_memory_bytes=settings.index_max_memory_mb * MEBIBYTE if settings.index_max_memory_mb else None,
    )
    return replace(planned, column_type=column_type)


def index_to_resemble(connection: Connection, state: MigrationState) -> IndexShape | None:
    """The shape of the vector index by which the application searches, or searched before expand dropped it."""
    embedding = state.table.embedding
    definitions = [
        index.definition for index in serving_indexes(connection, state.table, embedding.number) if index.valid
    ]
    if state.new is not None and state.new.note is not None:
        definitions += state.new.note.dropped_indexes
    shapes = (IndexShape.of(definition) for definition in definitions)
    return next((shape for shape in shapes if shape is not None), None)


def _is_of(shape: IndexShape | None, plan: IndexPlan) -> bool:
    return shape is not None and (shape.method, shape.element, shape.metric) == (plan.method, plan.element, plan.metric)


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
