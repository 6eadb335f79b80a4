"""Plan: what a migration would do to this table, measured and counted. Changes nothing."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.catalog import pgvector_version
from bge_pipeline.database.connection import server_version
from bge_pipeline.database.dependents import find_dependents
from bge_pipeline.database.functions import find_functions
from bge_pipeline.database.indexes import MEBIBYTE, IndexPlan
from bge_pipeline.database.partition_indexes import serving_indexes
from bge_pipeline.database.partitions import most_rows
from bge_pipeline.database.pending import count_lacking, count_rows
from bge_pipeline.database.pgvector_version import version_obstacle
from bge_pipeline.database.pooler import session_obstacle
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.tested_versions import untested_versions
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.consent import Step, step_ahead
from bge_pipeline.phases.endpoint_use import EndpointUse, count_unsent, endpoint_use
from bge_pipeline.phases.function_words import told_functions
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.old_vectors import OldVectors
from bge_pipeline.phases.part import told_part
from bge_pipeline.phases.partitioned import refusals, told_partitions
from bge_pipeline.phases.plan_rates import (
    TOKEN_SAMPLE_ROWS,
    TokenLengths,
    backfill_seconds,
    disk_bytes,
    run_by,
    texts_per_second,
    token_lengths,
)
from bge_pipeline.phases.plan_words import (
    begins_anew,
    find_obstacles,
    keeps_search_current,
    look_around,
    old_index_costs,
    told_buffers,
    told_drops,
    told_notices,
)
from bge_pipeline.phases.safeguards import names_obstacle
from bge_pipeline.phases.state import Phase, read_state
from bge_pipeline.phases.text_source import text_obstacle
from bge_pipeline.phases.unloaded_model import UnloadedModel
from bge_pipeline.phases.vector_index import index_to_resemble, plan_vector_index
from bge_pipeline.phases.writing_rates import WritingRates, measure_writing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a migration would do.

    Attributes:
        step: what a person is asked to agree to before `migrate` does it; None where nothing new begins.
        old_model: the model of the column that search reads, None where nobody recorded it.
        rows, pending: rows of the table, and those that would be embedded.
        run_by: what runs the model, how that was proved, and what kept it off a faster way; None where it is not loaded or
            there is no model.
        tokens: of a sample of the table; of no rows where the model is not loaded.
        texts_per_second: measured on a sample of the table on this machine; 0 where it is not known.
        writing: rates of writing, measured on a temporary copy of some rows; None where that could not be.
        backfill_seconds: pending rows at the slower of encoding and writing; 0 where the speed is not known.
        endpoint: who would be sent how many tokens at what price; None for a model on this machine.
        disk_bytes: growth while old and new vectors stand side by side: new row versions, vectors and index.
        index: how the new vector index would be built.
        maintenance_work_mem_bytes: what the server gives an index build by default.
        old_indexes: vector indexes on the old column.
        drops: what goes, and when.
        old_index_costs: what each value of OLD_INDEX means for this table.
        dependents: what is bound to the old column; the swap refuses while these exist.
        mentions: functions whose text names the old column, or its type with its dimensions, with what the migration means to
            each and the statement that mends it; to be checked by a person.
        publications: what logical replication will carry, and what its subscribers have to do.
        triggers: the application's triggers and rules, and what each will see of the backfill.
        warnings: what would make vectors unreliable, or the application's statements fail.
        missing_privileges: what the role lacks, with the statement that grants it.
        keeps_search_current: whether rows that are written while the migration runs are found by search before its swap;
            None on a first migration, in which the application writes what search reads.
        notices: what a person must know before the migration, though it stops nothing.
        obstacles: what would stop the migration.
    """

    table: str
    phase: Phase
    step: Step | None
    rows: int
    pending: int
    old_model: str | None
    old_dimensions: int | None
    new_dimensions: int
    model: str
    device: str
    precision: str
    run_by: str | None
    tokens: TokenLengths
    texts_per_second: float
    writing: WritingRates | None
    backfill_seconds: float
    endpoint: EndpointUse | None
    disk_bytes: int
    table_bytes: int
    index: IndexPlan
    maintenance_work_mem_bytes: int
    old_indexes: tuple[str, ...]
    drops: tuple[str, ...]
    old_index_costs: dict[str, str]
    dependents: tuple[str, ...]
    mentions: tuple[str, ...]
    publications: tuple[str, ...]
    triggers: tuple[str, ...]
    warnings: tuple[str, ...]
    missing_privileges: tuple[str, ...]
    postgres_version: int
    pgvector_version: str | None
    keeps_search_current: bool | None
    notices: tuple[str, ...]
    obstacles: tuple[str, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan(migration: Migration, service: EmbeddingsService | UnloadedModel) -> Plan:
    """Look at the table, measure the model on a sample of it, and say what a migration would do.

    Of a model that is not loaded, the speed is what is known of it; texts are counted in tokens only for an endpoint's, to
    which nothing is sent then.
    """
    settings = migration.settings
    target = migration.target
    with explaining_text(target), migration.database.autocommit() as connection:
        state = read_state(connection, target)
        column = (state.new or state.table.embedding).name
        counts = count_rows(connection, target, column)
        pending = counts.rows - counts.without_text if begins_anew(state, service.space) else counts.pending
        texts = sample_texts(connection, target, TOKEN_SAMPLE_ROWS)
        vector = VectorType(settings.target_vector_type, service.dimensions)
        is_made_anew = state.new is None and begins_anew(state, service.space)
        is_ahead = is_made_anew or state.new is not None
        filled_type = vector.element if is_made_anew else state.filled.type_name
        resembled = index_to_resemble(connection, state)
        rows_of_index = most_rows(connection, target) if state.table.is_partitioned else counts.rows
        index = plan_vector_index(settings, service.space, rows_of_index, resembled, filled_type)
        old_indexes = serving_indexes(connection, state.table, state.table.embedding.number)
        # Of a part nothing is exchanged, and what reads the old column goes on.
        exchanges = target.condition is None
        dependents = find_dependents(connection, state.table, target.embedding_column) if exchanges else ()
        functions = find_functions(connection, state.table, state.table.embedding)
        around = look_around(connection, settings, state, service.space, pending)
        version = pgvector_version(connection)
        memory = _setting_bytes(connection, "maintenance_work_mem")
        index_bytes = sum(old.bytes for old in old_indexes) if pending and settings.old_index == "keep" else 0
        crowded = told_buffers(_setting_bytes(connection, "shared_buffers"), index_bytes)
        size = table_bytes(connection, target)
        disk = disk_bytes(connection, target, pending, index, vector)
        postgres, untested = server_version(connection), untested_versions(connection)
        unfit = [
            session_obstacle(migration.database),
            version_obstacle(connection, settings),
            names_obstacle(connection, state),
            text_obstacle(migration.database, state.table),
            *(refusals(connection, state, settings) if is_ahead else ()),
        ]
        old = OldVectors.of(connection, target, state.previous or state.table.embedding)
        column_ahead = target.column_for(service.dimensions)
        part = told_part(connection, target, column_ahead)
        partitions = told_partitions(connection, state, column_ahead, vector) if is_ahead else ()
        without_previous = count_lacking(connection, target, state.previous.name) if state.previous else 0
    tokens = token_lengths(
        service.space.max_tokens,
        count_unsent(settings, texts) if isinstance(service, UnloadedModel) else service.encoder.tokenize(texts),
    )
    endpoint = endpoint_use(settings, tokens.mean, pending)
    speed = texts_per_second(service, texts)
    writing = None
    if pending and session_obstacle(migration.database) is None:  # a temporary table would stay in the pooler's session
        writing = measure_writing(migration, state.table, old_indexes, service.dimensions)
    bound = tuple(str(dependent) for dependent in dependents if dependent.bound)
    keeps_current = keeps_search_current(settings, state, service.space)
    return Plan(
        table=str(target),
        phase=state.phase,
        step=step_ahead(state, service.space),
        rows=counts.rows,
        pending=pending,
        old_model=state.current_space.model if state.current_space else None,
        old_dimensions=state.table.embedding.dimensions,
        new_dimensions=service.dimensions,
        model=service.space.model,
        device=service.device,
        precision=service.space.precision,
        run_by=run_by(service),
        tokens=tokens,
        texts_per_second=speed,
        writing=writing,
        backfill_seconds=max(
            backfill_seconds(pending, speed, writing, keeps_index=settings.old_index == "keep"),
            endpoint.least_seconds if endpoint is not None else 0.0,
        ),
        endpoint=endpoint,
        disk_bytes=disk,
        table_bytes=size,
        index=index,
        maintenance_work_mem_bytes=memory,
        old_indexes=tuple(f"{old.name} ({old.method}, {old.bytes / MEBIBYTE:,.0f} MB)" for old in old_indexes),
        drops=told_drops(settings, [old.name for old in old_indexes]),
        old_index_costs=old_index_costs([old.name for old in old_indexes], pending, speed, writing),
        dependents=bound,
        mentions=told_functions(functions, target, state.table.embedding, vector)
        if exchanges and (state.new is not None or is_made_anew)
        else tuple(f"function {function.name}" for function in functions if function.reads),
        publications=around.publications,
        triggers=around.triggers,
        warnings=around.warnings,
        missing_privileges=around.lacking,
        postgres_version=postgres,
        pgvector_version=version,
        keeps_search_current=keeps_current,
        notices=(
            *filter(None, [untested, part, crowded]),
            *partitions,
            *told_notices(settings, state, service.space, old, without_previous, keeps_current=keeps_current),
        ),
        obstacles=find_obstacles(settings, service, state, bound if is_ahead else (), around, unfit),
    )


def _setting_bytes(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"SELECT pg_size_bytes(current_setting('{name}'))").scalar_one())
