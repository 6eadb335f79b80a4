"""Plan: what a migration would do to this table, measured and counted. Changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection

from bge_pipeline.database.catalog import pgvector_version
from bge_pipeline.database.connection import Database, server_version
from bge_pipeline.database.dependents import find_dependents
from bge_pipeline.database.indexes import MEBIBYTE, IndexPlan, vector_indexes_on
from bge_pipeline.database.pending import count_lacking, count_rows
from bge_pipeline.database.pgvector_version import version_obstacle
from bge_pipeline.database.pooler import session_obstacle
from bge_pipeline.database.privileges import missing_privileges
from bge_pipeline.database.publications import find_replication, updates_fault
from bge_pipeline.database.read_only import read_only_fault
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.database.user_triggers import find_user_triggers
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.duration import duration
from bge_pipeline.embedding.encoder import TextsRefused, TokenizedTexts
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.application_vectors import same_dimensions
from bge_pipeline.phases.companion import can_be_kept, missing_model
from bge_pipeline.phases.consent import Step, step_ahead
from bge_pipeline.phases.endpoint_use import EndpointUse, count_unsent, endpoint_use
from bge_pipeline.phases.old_vectors import OldVectors
from bge_pipeline.phases.part import told_part
from bge_pipeline.phases.safeguards import taken_names
from bge_pipeline.phases.state import MigrationState, Phase, read_state
from bge_pipeline.phases.surroundings import hidden_changes, told_replication, told_triggers, warnings_of
from bge_pipeline.phases.text_source import text_obstacle
from bge_pipeline.phases.unloaded_model import UnloadedModel
from bge_pipeline.phases.vector_index import index_to_resemble, plan_vector_index
from bge_pipeline.phases.writing_rates import WritingRates, measure_writing
from bge_pipeline.settings import Settings, SwapSettings
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)

_TOKEN_SAMPLE_ROWS = 2_000
SPEED_SAMPLE_ROWS = 256
"""Texts on which the speed of a model is measured."""


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of a sample of the table's texts, in tokens of the new model, before truncation to `limit`."""

    sampled_rows: int
    mean: float
    median: int
    p95: int
    longest: int
    limit: int
    share_truncated: float


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
        mentions: functions whose text names the old column; to be checked by a person.
        publications: what logical replication will carry, and what its subscribers have to do.
        triggers: the application's triggers, and what each will see of the backfill.
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


def plan(database: Database, settings: Settings, service: EmbeddingsService | UnloadedModel) -> Plan:
    """Look at the table, measure the model on a sample of it, and say what a migration would do.

    Of a model that is not loaded, the speed is what is known of it; texts are counted in tokens only for an endpoint's, to
    which nothing is sent then.
    """
    target = TargetTable.from_settings(settings)
    with explaining_text(target), database.autocommit() as connection:
        state = read_state(connection, target)
        column = (state.new or state.table.embedding).name
        counts = count_rows(connection, target, column)
        pending = counts.rows - counts.without_text if _begins_anew(state, service.space) else counts.pending
        texts = sample_texts(connection, target, _TOKEN_SAMPLE_ROWS)
        vector = VectorType(settings.target_vector_type, service.dimensions)
        is_made_anew = state.new is None and _begins_anew(state, service.space)
        filled_type = vector.element if is_made_anew else state.filled.type_name
        resembled = index_to_resemble(connection, state)
        index = plan_vector_index(settings, service.space, counts.rows, resembled, filled_type)
        old_indexes = vector_indexes_on(connection, state.table.oid, state.table.embedding.number)
        dependents = find_dependents(connection, state.table, target.embedding_column)
        around = _look_around(connection, settings, state, service.space, pending)
        version = pgvector_version(connection)
        memory = _setting_bytes(connection, "maintenance_work_mem")
        size = table_bytes(connection, target)
        disk = _disk_bytes(connection, target, pending, index, vector)
        postgres = server_version(connection)
        unfit = [
            session_obstacle(database),
            version_obstacle(connection, settings),
            text_obstacle(database, state.table),
        ]
        old = OldVectors.of(connection, target, state.previous or state.table.embedding)
        part = told_part(connection, target, target.column_for(service.dimensions))
        without_previous = count_lacking(connection, target, state.previous.name) if state.previous else 0
    tokens = _token_lengths(
        service.space.max_tokens,
        count_unsent(settings, texts) if isinstance(service, UnloadedModel) else service.encoder.tokenize(texts),
    )
    endpoint = endpoint_use(settings, tokens.mean, pending)
    speed = _texts_per_second(service, texts)
    writing = None
    if pending and session_obstacle(database) is None:  # a temporary table would stay in the pooler's session
        writing = measure_writing(database, settings, state.table, old_indexes, service.dimensions)
    bound = tuple(str(dependent) for dependent in dependents if dependent.bound)
    keeps_current = _keeps_search_current(settings, state, service.space)
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
        run_by=_run_by(service),
        tokens=tokens,
        texts_per_second=speed,
        writing=writing,
        backfill_seconds=max(
            _backfill_seconds(pending, speed, writing, keeps_index=settings.old_index == "keep"),
            endpoint.least_seconds if endpoint is not None else 0.0,
        ),
        endpoint=endpoint,
        disk_bytes=disk,
        table_bytes=size,
        index=index,
        maintenance_work_mem_bytes=memory,
        old_indexes=tuple(f"{old.name} ({old.method}, {old.bytes / MEBIBYTE:,.0f} MB)" for old in old_indexes),
        drops=_drops(settings, [old.name for old in old_indexes]),
        old_index_costs=_old_index_costs([old.name for old in old_indexes], pending, speed, writing),
        dependents=bound,
        mentions=tuple(str(d) for d in dependents if not d.bound and d.kind != "publication"),
        publications=around.publications,
        triggers=around.triggers,
        warnings=around.warnings,
        missing_privileges=around.lacking,
        postgres_version=postgres,
        pgvector_version=version,
        keeps_search_current=keeps_current,
        notices=(
            *filter(None, [part]),
            *_notices(settings, state, service.space, old, without_previous, keeps_current=keeps_current),
        ),
        obstacles=_obstacles(settings, service, state, bound, around, unfit),
    )


@dataclass(frozen=True)
class _Around:
    """Who else stands around the table, in words; `lacking` are privileges, `obstacles` whatever else would stop a migration."""

    publications: tuple[str, ...]
    triggers: tuple[str, ...]
    warnings: tuple[str, ...]
    lacking: tuple[str, ...]
    obstacles: tuple[str, ...]


def _look_around(
    connection: Connection, settings: Settings, state: MigrationState, space: EmbeddingSpace, pending: int
) -> _Around:
    target = state.table.target
    begins = state.new is not None or _begins_anew(state, space)
    column = target.column_for(space.dimensions) if begins else target.embedding_column
    vector = VectorType(settings.target_vector_type, space.dimensions)
    skips = settings.skips_triggers
    triggers = find_user_triggers(connection, state.table)
    replication = find_replication(connection, state.table)
    faults = [read_only_fault(connection), updates_fault(connection, state.table, replication)]
    obstacles = [f"{reason}; {remedy}" for reason, remedy in filter(None, faults)]
    if begins:
        taken = taken_names(connection, state, column)
        obstacles += [f"{target} already has {name}, whose name a migration needs: rename or drop it" for name in taken]
    warnings = warnings_of(connection, state)
    return _Around(
        publications=told_replication(replication, state, column, vector) if begins else (),
        triggers=told_triggers(triggers, column, pending, settings.backfill_batch_rows, skipping=skips),
        warnings=warnings if state.phase != "legacy" else hidden_changes(target, triggers),
        lacking=tuple(str(p) for p in missing_privileges(connection, state.table, skips_triggers=skips)),
        obstacles=tuple(obstacles),
    )


def _begins_anew(state: MigrationState, space: EmbeddingSpace) -> bool:
    """Whether every row is to be embedded: on the first migration, and on the next one after a retired one."""
    if state.phase == "legacy":
        return True
    current = state.current_space
    return state.phase == "retired" and (current is None or not current.is_same_as(space))


def _run_by(service: EmbeddingsService | UnloadedModel) -> str | None:
    road = service.road if isinstance(service, EmbeddingsService) else None
    return str(road) if road is not None else None


def _token_lengths(limit: int, tokens: TokenizedTexts | None) -> TokenLengths:
    if not tokens:
        return TokenLengths(0, 0.0, 0, 0, 0, limit, 0.0)
    lengths = tokens.token_counts
    return TokenLengths(
        sampled_rows=len(tokens),
        mean=float(lengths.mean()),
        median=int(np.median(lengths)),
        p95=int(np.percentile(lengths, 95)),
        longest=int(lengths.max()),
        limit=limit,
        share_truncated=float(tokens.truncated.mean()),
    )


def _texts_per_second(service: EmbeddingsService | UnloadedModel, texts: list[str]) -> float:
    """Texts a second on a sample of the table, after a first call that pays for the start."""
    if isinstance(service, UnloadedModel):
        return service.texts_per_second
    sample = texts[:SPEED_SAMPLE_ROWS]
    if not sample:
        return 0.0
    _encode(service, sample[:8])
    started = time.perf_counter()
    _encode(service, sample)
    return len(sample) / (time.perf_counter() - started)


def _encode(service: EmbeddingsService, texts: list[str]) -> None:
    """Encode for the time it takes; a text at fault, which the backfill will put aside, is no obstacle to a plan."""
    try:
        service.encode_texts(texts)
    except TextsRefused as refusal:
        logger.warning("%s", refusal.message)


def _setting_bytes(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"SELECT pg_size_bytes(current_setting('{name}'))").scalar_one())


def _disk_bytes(connection: Connection, target: TargetTable, pending: int, index: IndexPlan, vector: VectorType) -> int:
    """New row versions (values out of line stay where they are), new vectors, and the new index with its lists."""
    statement = target.sql("SELECT pg_relation_size(CAST(:name AS regclass))")
    heap = int(connection.execute(statement, {"name": str(target)}).scalar_one())
    element = 2 if index.element == "halfvec" else 4
    return int(heap + pending * (vector.bytes + 8) * 1.05 + pending * (element * index.dimensions + 32) * 1.1)


def _backfill_seconds(pending: int, speed: float, writing: WritingRates | None, *, keeps_index: bool) -> float:
    """At the rate of the slower, model or writing; 0 where neither is known."""
    rates = [speed] if speed else []
    if writing is not None:
        rates.append(writing.kept if keeps_index else writing.dropped)
    return pending / min(rates) if rates else 0.0


def _drops(settings: SwapSettings, old_indexes: list[str]) -> tuple[str, ...]:
    dropped = []
    if settings.old_index == "drop" and old_indexes:
        names = ", ".join(old_indexes)
        dropped.append(f"{names} before the backfill: until the swap, search reads the whole table (OLD_INDEX=drop)")
    if settings.old_embedding == "drop":
        dropped.append("the old vectors in the swap: there is no way back after it (OLD_EMBEDDING=drop)")
    return tuple(dropped)


def _old_index_costs(
    old_indexes: Sequence[str], pending: int, speed: float, writing: WritingRates | None
) -> dict[str, str]:
    if not old_indexes:
        return {
            "drop": "no vector index on the old column: nothing changes",
            "keep": "no vector index on the old column",
        }
    dropped, kept = (_backfill_seconds(pending, speed, writing, keeps_index=keeps) for keeps in (False, True))
    stays = f" ({writing.in_page:.0%} of the updates do not touch it)" if writing is not None else ""
    return {
        "drop": f"backfill about {duration(dropped)}; until the swap, search on the old column reads the whole table",
        "keep": f"search stays fast; backfill about {duration(kept)}{stays}",
    }


def _keeps_search_current(settings: Settings, state: MigrationState, space: EmbeddingSpace) -> bool | None:
    is_next = state.companion is not None if state.new is not None else _begins_anew(state, space)
    if state.phase in ("legacy", "swapped") or not is_next or state.current_space is None:
        return None
    return can_be_kept(state.current_space, settings)


def _notices(
    settings: SwapSettings,
    state: MigrationState,
    space: EmbeddingSpace,
    old: OldVectors,
    without_previous: int,
    *,
    keeps_current: bool | None,
) -> tuple[str, ...]:
    found = []
    if state.phase == "swapped":
        if old.has(space.dimensions):
            found.append(same_dimensions(space.dimensions, is_watched=True))
        if without_previous:
            found.append(f"a rollback would leave {without_previous:,} rows without a vector")
    elif state.new is not None or _begins_anew(state, space):
        found.extend(filter(None, [old.told()]))
        if old.has(space.dimensions):
            found.append(same_dimensions(space.dimensions, is_watched=settings.old_embedding == "keep"))
        if keeps_current:
            found.append("new rows are embedded by both models until retire, so that search finds them: two in memory")
        elif keeps_current is False and state.current_space is not None:
            found.append(missing_model(state.current_space, is_before_swap=True))
    return tuple(found)


def _obstacles(
    settings: Settings,
    service: EmbeddingsService | UnloadedModel,
    state: MigrationState,
    dependents: tuple[str, ...],
    around: _Around,
    unfit: Sequence[BgePipelineError | None],
) -> tuple[str, ...]:
    found = [f"{refusal.message}; {refusal.next_step}" for refusal in unfit if refusal is not None]
    if service.dimensions != settings.embedding_dimensions:
        found.append(f"EMBEDDING_DIMENSIONS is {settings.embedding_dimensions}, the model makes {service.dimensions}")
    if state.phase == "swapped":
        found.append("the last migration still keeps its old column: bge-pipeline retire, or bge-pipeline rollback")
    if dependents and settings.dependents == "refuse":
        found.append(f"the swap will refuse: {', '.join(dependents)} depend on the old column")
    found.extend(around.obstacles)
    found.extend(f"missing privilege: {privilege}" for privilege in around.lacking)
    return tuple(found)
