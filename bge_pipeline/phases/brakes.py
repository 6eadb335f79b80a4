"""What may hold a backfill back: a pause, a standby that lags, a limit of rows a second. Search has a module of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.pause import PauseReader
from bge_pipeline.database.replication_lag import count_hidden_standbys, find_lags
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pace import PAUSED, RATE, Allowance, Brake, Pace
from bge_pipeline.phases.room_brake import RoomBrake
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.phases.search_brake import SearchBrake

logger = logging.getLogger(__name__)

_PAUSE_LOOK_SECONDS = 0.5
_LAG_LOOK_SECONDS = 1.0
_CAUGHT_UP = 0.5
"""Share of MAX_REPLICATION_LAG_MB at which a standby counts as caught up, so that it does not fall behind at once again."""


def make_pace(
    migration: Migration,
    stop: threading.Event,
    *,
    totals: BackfillTotals | None = None,
    goal_rows: int | None = None,
    is_throttled: bool = True,
    workers: Callable[[], int] = lambda: 1,
    allowance: Allowance | None = None,
) -> Pace:
    """The pace that the settings ask for.

    Args:
        migration: its settings MAX_ROWS_PER_SECOND, MAX_REPLICATION_LAG_MB, MAX_SEARCH_SLOWDOWN and BACKFILL_WAIT_FOR_SNAPSHOTS.
        stop: set it to end after the batch in hand.
        totals: of the backfill, by which the room in the table's pages is watched; None: it is not.
        goal_rows: rows to write before it is enough.
        is_throttled: False where the moment counts; a pause holds all the same.
        workers: gives how many processes fill the table now and share MAX_ROWS_PER_SECOND.
        allowance: what the encoder may cost.
    """
    brakes: list[Brake] = [PauseBrake(migration.database, migration.target)]
    if is_throttled:
        brakes += throttles(migration, workers)
        if totals is not None:
            brakes.append(
                RoomBrake(
                    migration.database,
                    migration.settings.backfill_wait_for_snapshots,
                    lambda: (totals.written, totals.in_page),
                )
            )
    most = migration.settings.max_rows_per_second if is_throttled else None
    return Pace(stop, brakes, goal_rows=goal_rows, max_batch_rows=most, allowance=allowance)


def throttles(migration: Migration, workers: Callable[[], int] = lambda: 1) -> Sequence[Brake]:
    """The brakes that the settings ask for."""
    settings = migration.settings
    brakes: list[Brake] = []
    if settings.max_replication_lag_mb is not None:
        brakes.append(LagBrake(migration.database, settings.max_replication_lag_mb))
    if settings.max_search_slowdown is not None:
        brakes.append(SearchBrake(migration, settings.max_search_slowdown))
    if settings.max_rows_per_second is not None:
        brakes.append(RateBrake(settings.max_rows_per_second, workers))
    return brakes


class PauseBrake:
    """Holds while the table is paused, whoever did it and from wherever."""

    reason = PAUSED

    def __init__(self, database: Database, target: TargetTable) -> None:
        self.words: str | None = None
        self._database = database
        self._flag = PauseReader(target)
        self._looked_at = float("-inf")

    def begin(self) -> None:
        """Nothing to prepare."""

    def end(self) -> None:
        """Nothing to put away."""

    def seconds_left(self, rows: int, waited: float) -> float:  # noqa: ARG002 - a pause asks for neither
        """Until the next look while the table is paused."""
        if time.monotonic() - self._looked_at >= _PAUSE_LOOK_SECONDS:
            self._look()
        return _PAUSE_LOOK_SECONDS if self.words else 0.0

    def _look(self) -> None:
        try:
            with self._database.autocommit() as connection:
                entry = self._flag.look(connection)
            self.words = f"{entry}; bge-pipeline resume" if entry is not None and entry.paused else None
        except (BgePipelineError, SQLAlchemyError) as error:
            # What held holds on; without a database there is nothing to write to either, which the writer says.
            logger.debug("whether the table is paused could not be asked: %s", error)
        self._looked_at = time.monotonic()


class LagBrake:
    """Holds while a standby or a slot lags farther behind than MAX_REPLICATION_LAG_MB, until it has caught up."""

    reason = "replication"

    def __init__(self, database: Database, max_megabytes: int) -> None:
        self.words: str | None = None
        self._database = database
        self._max_megabytes = max_megabytes
        self._looked_at = float("-inf")

    def begin(self) -> None:
        """Say what cannot be seen."""
        try:
            with self._database.autocommit() as connection:
                hidden = count_hidden_standbys(connection)
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.debug("the standbys could not be asked: %s", error)
            return
        if hidden:
            logger.warning(
                "MAX_REPLICATION_LAG_MB does not see %d standbys: this role may not read their place in the log; "
                "GRANT pg_read_all_stats TO it lets it",
                hidden,
            )

    def end(self) -> None:
        """Nothing to put away."""

    def seconds_left(self, rows: int, waited: float) -> float:  # noqa: ARG002 - a standby asks for neither
        """Until the next look while something lags."""
        if time.monotonic() - self._looked_at >= _LAG_LOOK_SECONDS:
            self._look()
        return _LAG_LOOK_SECONDS if self.words else 0.0

    def _look(self) -> None:
        limit = self._max_megabytes * 2**20 * (_CAUGHT_UP if self.words else 1.0)
        try:
            with self._database.autocommit() as connection:
                lags = find_lags(connection)
            worst = lags[0] if lags and lags[0].bytes > limit else None
            self.words = f"{worst} (MAX_REPLICATION_LAG_MB={self._max_megabytes})" if worst is not None else None
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.debug("the standbys could not be asked: %s", error)
        self._looked_at = time.monotonic()


class RateBrake:
    """Holds after each batch until its rows have taken the time that MAX_ROWS_PER_SECOND gives them.

    Args:
        max_rows_per_second: of all processes that fill the table.
        workers: gives how many they are; each takes an equal share.
    """

    reason = RATE

    def __init__(self, max_rows_per_second: int, workers: Callable[[], int] = lambda: 1) -> None:
        self.words: str | None = None
        self._workers = workers
        self._max_rows_per_second = max_rows_per_second
        self._due = float("-inf")

    def begin(self) -> None:
        """Time runs from here."""
        self._due = time.monotonic()

    def end(self) -> None:
        """Nothing to put away."""

    def seconds_left(self, rows: int, waited: float) -> float:  # noqa: ARG002 - counted from the batch before
        """Until the rows so far are no more than the limit allows; time that was not used up is lost."""
        now = time.monotonic()
        if rows:
            # From when the batch before was due, as this one took time itself; never more than a second is made up for.
            self._due = max(self._due, now - 1.0) + rows * self._workers() / self._max_rows_per_second
        left = self._due - now
        self.words = None
        if left > 0:
            shared = f" among {count} processes" if (count := self._workers()) > 1 else ""
            self.words = f"at most {self._max_rows_per_second:,} rows/s{shared} (MAX_ROWS_PER_SECOND)"
        return left
