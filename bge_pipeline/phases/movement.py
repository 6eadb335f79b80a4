"""Whether a backfill stands still: rows wait, nobody has paused the table, and no process has written one for long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.database.activity import is_being_indexed
from bge_pipeline.database.heartbeat import Worker, read_workers
from bge_pipeline.database.movement import seconds_since_movement
from bge_pipeline.database.pause import PauseEntry, read_pause
from bge_pipeline.database.pending import count_pending_at_most, has_pending_index
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.duration import duration
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import looking_again, read_state

_COUNTED_ROWS = 10_000
"""Pending rows are counted so far: more of them change nothing."""


@dataclass(frozen=True)
class Movement:
    """What happened on the table lately.

    Attributes:
        table: schema-qualified, quoted.
        phase: of the migration.
        still_seconds: since a vector was last written or a phase ended; None where no migration has begun.
        limit_seconds: STANDSTILL_MINUTES.
        pending: rows that wait, counted up to 10,000; None where something moves, is indexed or is paused.
        came_lately: whether hardly a row waited once: those that do now may have come a moment ago.
        workers: processes at work, and those that fell silent.
        paused: who paused the table.
    """

    table: str
    phase: str
    still_seconds: float | None
    limit_seconds: float
    pending: int | None = None
    came_lately: bool = False
    workers: Sequence[Worker] = ()
    paused: PauseEntry | None = None

    @property
    def stands_still(self) -> bool:
        """Whether a person should look."""
        return bool(self.pending)

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"stands_still": self.stands_still, "workers": [str(worker) for worker in self.workers]}

    def __str__(self) -> str:
        if self.still_seconds is None:
            return f"no migration of {self.table} has begun, or this role may not read its journal"
        if self.paused is not None:
            return f"{self.table} is {self.paused}"
        ago = f"the last vector or phase was {duration(self.still_seconds)} ago"
        if not self.pending:
            return f"{self.table}: {ago}{'' if self.pending is None else ', and no row waits'}"
        rows = f"{self.pending:,}{' or more' if self.pending >= _COUNTED_ROWS else ''} rows"
        at_work = "; ".join(str(worker) for worker in self.workers) or "nobody"
        return (
            f"the backfill of {self.table} stands still: {rows} wait for a vector, {ago}, more than "
            f"{duration(self.limit_seconds)} (STANDSTILL_MINUTES). At work: {at_work}. Next: {self._next_step()}"
        )

    def _next_step(self) -> str:
        if held := next((worker.held for worker in self.workers if worker.held), None):
            return f"see to what holds it back: {held}"
        if any(not worker.is_silent for worker in self.workers):
            return "the log of the process at work; one batch of a slow model may take longer than that"
        if self.workers:
            return (
                "the machine of the silent process; what it committed is kept, and the backfill goes on when run again"
            )
        return "launch the backfill of backfilled_embeddings, or run bge-pipeline migrate (before the swap) or embed"


@looking_again
def read_movement(migration: Migration) -> Movement:
    """What happened on the table lately; rows are counted only where nothing has.

    Raises:
        TargetTableError: there is no such table.
        DatabaseUnavailable: the database cannot be reached.
    """
    target, limit = migration.target, migration.settings.standstill_minutes * 60
    with explaining_text(target), migration.database.autocommit() as connection:
        state = read_state(connection, target)
        seconds = None if state.phase == "legacy" else seconds_since_movement(connection, target)
        workers, paused = read_workers(connection, target), read_pause(connection, target)
        pending, came_lately = None, False
        is_at_rest = seconds is not None and seconds > limit and paused is None
        if is_at_rest and not is_being_indexed(connection, target):
            pending = count_pending_at_most(connection, target, state.filled.name, _COUNTED_ROWS)
            came_lately = has_pending_index(connection, target, state.filled.name)
    return Movement(str(target), state.phase, seconds, limit, pending, came_lately, tuple(workers), paused)
