"""Backfill: embed what is pending, in passes over an id range, until nothing is left that can be embedded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column, describe_table
from bge_pipeline.database.heartbeat import Heartbeat
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.journal import record
from bge_pipeline.database.lock_holders import find_holders, shown_holders
from bge_pipeline.database.pending import count_pending, quarantine_is_usable
from bge_pipeline.database.pooler import require_session
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.publications import require_updates
from bge_pipeline.database.quarantine import forget_changed
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.database.update_rules import require_no_instead
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.embedding.loading import road_of
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.allowance import allowance_of
from bge_pipeline.phases.application_vectors import compare_application_vectors
from bge_pipeline.phases.brakes import make_pace
from bge_pipeline.phases.companion import CompanionKeeper
from bge_pipeline.phases.filling import column_now, fill_column
from bge_pipeline.phases.memory import peak_memory_bytes
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pace import Pace
from bge_pipeline.phases.pending_index import index_when_few_are_left
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.phases.state import read_state, require_space
from bge_pipeline.telemetry.meter import showing_progress
from bge_pipeline.telemetry.observed import observed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackfillProgress:
    """How far a backfill is; `total` is what was pending when it began, `held` what holds it back now, in words."""

    written: int
    total: int
    seconds: float
    held: str | None = None

    @property
    def rows_per_second(self) -> float:
        """Rows written a second so far."""
        return self.written / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None before the first rows."""
        return max(0, self.total - self.written) / self.rows_per_second if self.rows_per_second else None


@dataclass(frozen=True)
class BackfillResult:
    """What a backfill did.

    Attributes:
        rows: vectors written and committed.
        in_page: of these rows, those that stayed in their page, so that no index of the table heard of it (HOT updates).
        left_changed: rows that were edited or locked while their vector was made; later passes took them up again.
        quarantined: rows put aside because their text cannot be embedded.
        truncated: rows whose text was longer than the model reads.
        tokens: tokens that the model read.
        pending_after: rows of the range that still wait for a vector.
        seconds: wall time.
        read_seconds, tokenize_seconds, encode_seconds, write_seconds: time that each stage was busy; the stages
            overlap, so that they add up to more than `seconds`.
        peak_memory_bytes: largest resident size of the process.
        spent: the setting whose budget ended it before all was done; None where none did.
        held_seconds: time that it was held back, by reason: `paused`, `rate`, `replication`, `search`.
        run_by: what ran the model, how that was proved, and what kept it off a faster way; None without a model on this
            machine.
        companion_rows, companion_pending, companion_is_kept: what became of the companion column, see `CompanionResult`.
    """

    id_range: str
    column: str
    model: str
    device: str
    precision: str
    rows: int
    in_page: int
    left_changed: int
    quarantined: int
    truncated: int
    tokens: int
    pending_after: int
    seconds: float
    read_seconds: float
    tokenize_seconds: float
    encode_seconds: float
    write_seconds: float
    peak_memory_bytes: int
    held_seconds: dict[str, float] = field(default_factory=dict)
    spent: str | None = None
    companion_rows: int = 0
    companion_pending: int = 0
    companion_is_kept: bool | None = None
    run_by: str | None = None

    @property
    def texts_per_second(self) -> float:
        """Rows written per second of wall time."""
        return self.rows / self.seconds if self.seconds else 0.0

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"texts_per_second": self.texts_per_second}


@observed("backfill")
def backfill(
    migration: Migration,
    encoder: Encoder,
    id_range: IdRange | None = None,
    *,
    on_progress: Callable[[BackfillProgress], None] | None = None,
    stop: threading.Event | None = None,
    goal_rows: int | None = None,
    keeps_companion: bool = True,
) -> BackfillResult:
    """Give every pending row of the range (None: of the table) its vector.

    Every batch is a commit of its own: killed at any instant, a second call does what the first had not committed.
    Before the swap it fills the new column, afterwards the current one. Beside it the companion column is kept current,
    of the whole table.

    Args:
        migration: among its settings BACKFILL_BATCH_ROWS, BACKFILL_MAX_ATTEMPTS and what holds a backfill back (MAX_*).
        encoder: makes the vectors; must be of the column's embedding space.
        id_range: `[lower, upper)`.
        on_progress: called after each commit, and every second while the backfill is held back.
        stop: set it to end after the batch in hand.
        goal_rows: end when so many are written.
        keeps_companion: False where the moment counts, just before the columns are exchanged: nothing but a pause holds it.

    Raises:
        PhaseError: expand has not run.
        EmbeddingSpaceMismatch: the encoder is of another space than the column; nothing was written.
        ChangedMeanwhile: another process exchanged or dropped the column; what was committed before stays.
        EncodingError: the encoder fails on every text.
        TargetTableError: TARGET_TEXT or TARGET_WHERE fails for a row.
        DiskFull: the server has no space left for more vectors.
        DatabaseUnavailable: the database went away and did not come back, or (LoginRefused) let nobody in.
    """
    target = migration.target
    require_session(migration.database)
    with migration.database.autocommit() as connection:
        state = read_state(connection, target)
        column = state.filled
        require_space(column, encoder.space, target)
        skips = migration.settings.skips_triggers
        require_privileges(connection, state.table, column.name, alters=False, skips_triggers=skips)
        require_updates(connection, state.table)
        require_no_instead(connection, state.table, skipping=skips)
        if id_range is not None:
            id_range.require_columns(state.table.id_kind)
        _require_quarantine(connection, target)

    stop = stop if stop is not None else threading.Event()
    totals = BackfillTotals()
    if keeps_companion:
        with CompanionKeeper(migration, stop=stop) as keeper:
            name, words = encoder.space.model, str(id_range) if id_range is not None else "all"
            with Heartbeat(migration.database, target, words, name, totals, run_id=migration.run_id) as heartbeat:
                pace = make_pace(
                    migration,
                    stop,
                    totals=totals,
                    goal_rows=goal_rows,
                    workers=lambda: heartbeat.workers,
                    allowance=allowance_of(encoder),
                )
                heartbeat.held = lambda: pace.words
                result = _fill(migration, encoder, column, id_range, on_progress, pace, totals)
        kept = keeper.result_if_known()
        if id_range is None:
            _warn_of_strangers(migration, encoder)
        result = replace(
            result, companion_rows=kept.rows, companion_pending=kept.pending, companion_is_kept=kept.is_kept
        )
    else:
        pace = make_pace(migration, stop, goal_rows=goal_rows, is_throttled=False, allowance=allowance_of(encoder))
        result = _fill(migration, encoder, column, id_range, on_progress, pace, totals)
    if state.new is not None and not result.pending_after and not stop.is_set():
        index_when_few_are_left(migration)
    if result.rows or result.quarantined or result.companion_rows:
        record(migration.database, target, "backfill", result.as_metadata())
    return result


def _fill(
    migration: Migration,
    encoder: Encoder,
    column: Column,
    id_range: IdRange | None,
    on_progress: Callable[[BackfillProgress], None] | None,
    pace: Pace,
    totals: BackfillTotals,
) -> BackfillResult:
    target = migration.target
    with explaining_text(target), migration.database.autocommit() as connection:
        name = column_now(describe_table(connection, target), column.number).name
        total = count_pending(connection, target, name, id_range)
    started = time.perf_counter()

    def report() -> None:
        progress = BackfillProgress(totals.written, total, time.perf_counter() - started, pace.words)
        show(progress.rows_per_second, max(0, total - totals.written))
        if on_progress is not None:
            on_progress(progress)

    with explaining_text(target), showing_progress(str(target)) as show, pace.running(report):
        pending = fill_column(
            migration.database,
            migration.settings,
            target,
            column.number,
            encoder,
            id_range=id_range,
            totals=totals,
            report=report,
            pace=pace,
        )
    if pending and not pace.is_over:
        with migration.database.autocommit() as connection:
            holders = find_holders(connection, str(target))
        logger.warning(
            "%d rows are still pending: locked, or edited all the while by the application or by a trigger of its own; "
            "run the backfill again. Who has written to the table in a transaction that is still open: %s",
            pending,
            shown_holders(holders) or "nobody",
        )
    if totals.truncated:
        logger.warning(
            "%d of %d texts were longer than the %d tokens that the model reads; their vectors ignore the rest",
            totals.truncated,
            totals.written,
            encoder.space.max_tokens,
        )
    if id_range is None:
        with migration.database.transaction() as connection:
            forget_changed(connection, target)
    return BackfillResult(
        id_range=str(id_range) if id_range is not None else "all",
        column=column.name,
        model=encoder.space.model,
        device=encoder.device,
        precision=encoder.space.precision,
        run_by=str(road) if (road := road_of(encoder)) is not None else None,
        rows=totals.written,
        in_page=totals.in_page,
        left_changed=totals.left_changed,
        quarantined=totals.quarantined,
        truncated=totals.truncated,
        tokens=totals.tokens,
        pending_after=pending,
        seconds=time.perf_counter() - started,
        read_seconds=totals.read_seconds,
        tokenize_seconds=totals.tokenize_seconds,
        encode_seconds=totals.encode_seconds,
        write_seconds=totals.write_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        held_seconds=pace.held_seconds,
        spent=pace.spent if pending else None,
    )


def _warn_of_strangers(migration: Migration, encoder: Encoder) -> None:
    found = compare_application_vectors(migration, lambda: encoder)
    if found is not None and not found.passed:
        logger.warning("%s", found)


def _require_quarantine(connection: Connection, target: TargetTable) -> None:
    if not quarantine_is_usable(connection, target):
        raise PhaseError(
            f"{target.quarantine}, where rows that cannot be embedded are put, is missing, of an earlier version or another key",
            state="nothing was written",
            next_step="bge-pipeline migrate, as the owner of the table: it makes or mends the table and then embeds",
        )
