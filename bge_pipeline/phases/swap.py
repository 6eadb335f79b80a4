"""Swap: index the new column, verify it, and make it the one that search reads, in one short transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.index_build import BuildResult
from bge_pipeline.database.indexes import IndexPlan
from bge_pipeline.database.journal import record
from bge_pipeline.database.locks import silence_statement
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.partitions import partitions_with_own
from bge_pipeline.database.pending import has_more_pending_than
from bge_pipeline.database.pgvector_version import require_version
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.warming import warm
from bge_pipeline.database.writer import CommitRules, Destination, VectorWriter
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.companion import CompanionKeeper
from bge_pipeline.phases.consent import require_forward
from bge_pipeline.phases.exchange import behind_exchange, exchange_statements, lock_for_exchange
from bge_pipeline.phases.index_names import (
    NAMES_STAY,
    indexes_of_partitions,
    name_to_take_over,
    take_over_name,
    take_over_partition_names,
)
from bge_pipeline.phases.last_rows import (
    StillPending,
    embed_last_rows,
    lock_out_writers,
    longest_wait_ms,
    no_statement_longer_than,
)
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.old_vectors import OldVectors, swap_notices
from bge_pipeline.phases.part import reading
from bge_pipeline.phases.pause import wait_while_paused
from bge_pipeline.phases.pending_index import compact_pending_index
from bge_pipeline.phases.search_effort import note_search_effort, set_effort_on_server
from bge_pipeline.phases.state import MigrationState, read_state, require_same_parts, require_space
from bge_pipeline.phases.swap_checks import (
    check_bulk_is_done,
    check_dependents,
    use_pending_index,
    verify_new_column,
    warn_of_functions,
)
from bge_pipeline.phases.telling import untold
from bge_pipeline.phases.vector_index import build_index, filled_column
from bge_pipeline.phases.verdict import require_quality
from bge_pipeline.quality.gate import GateResult
from bge_pipeline.telemetry.observed import observed

logger = logging.getLogger(__name__)

_CATCH_UP_ROUNDS = 10
"""Attempts to find a moment in which so little is pending that writers can wait for it."""


@dataclass(frozen=True)
class SwapResult:
    """What the swap did.

    Attributes:
        exchanged: False when the columns had been exchanged before, and for a part of a table.
        previous_column: where the old vectors are, None when they were dropped.
        lock_milliseconds: how long the exclusive lock on the table was held, and readers waited.
        writer_pause_milliseconds: how long writers waited.
        last_rows: rows that were embedded meanwhile.
        not_null_dropped: the old column was NOT NULL, which inserts without an old vector would have broken.
        gate: what the quality gate measured and decided, overridden or not; None with QUALITY_GATE=off.
        notices: what a person must know from now on.
    """

    table: str
    column: str
    exchanged: bool
    previous_column: str | None
    index_name: str
    index_method: str
    index_built: bool
    index_seconds: float
    index_bytes: int
    maintenance_work_mem_mb: int
    lock_milliseconds: float
    writer_pause_milliseconds: float
    last_rows: int
    not_null_dropped: bool
    gate: GateResult | None
    notices: tuple[str, ...] = ()

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"gate": self.gate.as_metadata() if self.gate else None}


@observed("swap")
def swap(
    migration: Migration,
    service: EmbeddingsService,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
    on_step: Callable[[str], None] = untold,
) -> SwapResult:
    """Index the new column, ask the quality gate, and make the column the one that search reads.

    Of a part of the table (TARGET_WHERE) the column is indexed and judged and stays one of its own: nothing is exchanged.

    Rows that the application writes meanwhile are embedded at the last moment.

    Args:
        migration: among its settings OLD_EMBEDDING, DEPENDENTS, SWAP_MAX_PENDING_ROWS and QUALITY_GATE.
        service: the model that is believed to have made the new column's vectors.
        on_progress: told how far the index build is.
        on_step: told what begins, in a word or two.

    Raises:
        ConsentRequired: the columns were exchanged back, and nobody has agreed to go forward again.
        SwapRefused: rows are pending, something depends on the old column, the quality gate does not pass, or the
            index is not valid.
        EmbeddingSpaceMismatch: the new column holds another space.
        LockNotAcquired: the table was never free for LOCK_TIMEOUT_MS.
        OperatorBusy: another process changes the table's schema now.
        ChangedMeanwhile: another process changed it while this one had lost its session.
    """
    wait_while_paused(migration)
    with migration.operating("swap") as operator:
        return _swap(migration, operator, service, on_progress, on_step)


def _swap(
    migration: Migration,
    operator: Operator,
    service: EmbeddingsService,
    on_progress: Callable[[BuildProgress], None] | None,
    on_step: Callable[[str], None],
) -> SwapResult:
    database, settings, target = migration.database, migration.settings, migration.target
    space = service.space
    with database.autocommit() as connection:
        state = read_state(connection, target)
        require_version(connection, settings)
        column, _ = filled_column(state)
        require_space(column, space, target)
        require_privileges(connection, state.table, skips_triggers=settings.skips_triggers)
        if state.new is not None:
            require_forward(state.new, settings, target)
            if target.condition is None:  # of a part nothing is exchanged, and what reads the old column goes on
                check_dependents(connection, settings, state)
                warn_of_functions(connection, state)
            check_bulk_is_done(connection, settings, state)
        old = OldVectors.of(connection, target, state.table.embedding)
    gate = None
    with CompanionKeeper(migration):  # the application writes on for as long as index and gate take
        on_step("index")
        index, plan = build_index(migration, on_progress=on_progress)
        if state.new is not None:
            on_step("quality gate")
            queries = note_search_effort(operator, settings, state)
            set_effort_on_server(migration, state.new.name)
            gate = require_quality(migration, service, queries)
            with database.autocommit() as connection:
                require_same_parts(connection, state)
                state = read_state(connection, target)  # the notes are newer
            assert state.new is not None
            compact_pending_index(database, settings, target, state.new.name, space)
            warm(database, target, state.new.name, index.name, plan)
    if target.condition is not None and state.new is not None:
        backfill(migration, service.encoder)  # what came while index and gate took their time
        result = _result(state, index, plan, None, gate, None, (reading(target, state.new.name),))
        record(database, target, "index", result.as_metadata())
        return result
    if state.new is None:
        previous = state.previous.name if state.previous else None
        return _result(state, index, plan, previous, None, None)
    on_step("exchange")
    exchange = _exchange_when_caught_up(migration, operator, service, state, index.name)
    kept = target.column_for(state.table.embedding.dimensions) if settings.old_embedding == "keep" else None
    notices = swap_notices(settings, old, space)
    result = _result(state, index, plan, kept, gate, exchange, notices)
    with behind_exchange(target, "the journal does not tell of it"):
        record(database, target, "swap", result.as_metadata())
    for notice in result.notices:
        logger.warning("%s", notice)
    return result


def _exchange_when_caught_up(
    migration: Migration, operator: Operator, service: EmbeddingsService, state: MigrationState, index: str
) -> _Exchange:
    """Embed what the application wrote since the last look, and exchange: the last rows while writers wait.

    Index and gate take minutes, in which a live table always gets rows; only the moment of the locks counts.
    """
    settings = migration.settings
    target, new, old, encoder = state.table.target, state.new, state.table.embedding, service.encoder
    assert new is not None
    destination = Destination(target, new.name, new.number, state.table.id_kind, encoder.space.dimensions)
    rules = CommitRules(settings.swap_max_writer_pause_ms, settings.backfill_batch_rows, settings.skips_triggers)
    writer = VectorWriter(migration.database, destination, rules)
    done = _Exchange(index)

    def exchange(connection: Connection) -> None:
        lock_out_writers(connection, target)
        done.writers_locked_at = time.monotonic()
        deadline = done.writers_locked_at + settings.swap_max_writer_pause_ms / 1_000
        connection.execute(silence_statement(settings.swap_max_writer_pause_ms))  # in which the last rows are embedded
        require_same_parts(connection, state)
        verify_new_column(connection, settings, state, service.space, index)
        use_pending_index(connection)
        with no_statement_longer_than(connection, target, settings.swap_max_writer_pause_ms):
            if has_more_pending_than(connection, target, new.name, settings.swap_max_pending_rows):
                done.last_rows = embed_last_rows(connection, target, new.name, writer, encoder, deadline)
        left = longest_wait_ms(connection, done.writers_locked_at, deadline, settings.lock_timeout_ms)
        connection.execute(text(f"SET LOCAL lock_timeout = '{left}ms'"))
        lock_for_exchange(connection, state)
        done.locked_at = time.monotonic()
        check_dependents(connection, settings, state)  # a view can be created beside the writers' lock
        name = name_to_take_over(connection, state)
        partitions = partitions_with_own(connection, target, old.name)
        drops = settings.old_embedding == "drop"
        for statement in exchange_statements(target, new, old, drop_old=drops, partitions=partitions):
            connection.execute(statement)
        done.index = take_over_name(connection, target, name, index, target.column_for(old.dimensions))

    with migration.database.autocommit() as connection:
        of_partitions = indexes_of_partitions(connection, target, old.name, new.name)
    for attempt in range(1, _CATCH_UP_ROUNDS + 1):
        backfill(migration, encoder, keeps_companion=False)
        try:
            operator.change(settings, "swap: exchange the columns", exchange)
            break
        except StillPending as refusal:
            if attempt == _CATCH_UP_ROUNDS:
                raise
            logger.info("%s; round %d of %d", refusal.message, attempt, _CATCH_UP_ROUNDS)
    done.ended_at = time.monotonic()
    if of_partitions:
        previous = target.column_for(old.dimensions)
        with behind_exchange(target, NAMES_STAY):
            operator.change(
                settings,
                "swap: name the partitions' indexes",
                lambda connection: take_over_partition_names(connection, of_partitions, previous),
            )
    return done


@dataclass
class _Exchange:
    """The index's name, when locks were taken, on the clock of `time.monotonic`, and rows embedded under them."""

    index: str
    writers_locked_at: float = 0.0
    locked_at: float = 0.0
    ended_at: float = 0.0
    last_rows: int = 0


def _result(
    state: MigrationState,
    index: BuildResult,
    plan: IndexPlan,
    previous_column: str | None,
    gate: GateResult | None,
    exchange: _Exchange | None,
    notices: tuple[str, ...] = (),
) -> SwapResult:
    exchanged = exchange is not None
    exchange = exchange or _Exchange(index.name)
    return SwapResult(
        table=str(state.table.target),
        column=state.filled.name if state.table.target.condition is not None else state.table.target.embedding_column,
        exchanged=exchanged,
        previous_column=previous_column,
        index_name=exchange.index,
        index_method=plan.method,
        index_built=index.built,
        index_seconds=index.seconds,
        index_bytes=index.bytes,
        maintenance_work_mem_mb=index.maintenance_work_mem_mb,
        lock_milliseconds=(exchange.ended_at - exchange.locked_at) * 1_000,
        writer_pause_milliseconds=(exchange.ended_at - exchange.writers_locked_at) * 1_000,
        last_rows=exchange.last_rows,
        not_null_dropped=exchanged and state.table.embedding.not_null,
        gate=gate,
        notices=notices,
    )
