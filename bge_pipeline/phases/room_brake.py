"""Room in the pages: why the updates of a backfill reach the table's indexes after all, and whether to wait for that to pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.snapshots import old_snapshots
from bge_pipeline.errors import BgePipelineError

logger = logging.getLogger(__name__)

_ROWS_BETWEEN_LOOKS = 2_000
_LEAST_SHARE = 0.5
"""Of updates that stay in their page. Of rows of 2 kB, the largest, three in four do."""
_LOOK_SECONDS = 1.0


class RoomBrake:
    """Looks at the share of updates that stay in their page (HOT); where it is low, says who is to blame, and may wait.

    Without room every update goes to every index of the table: the backfill is slower, commits are smaller, and the table
    grows, but nothing is wrong.

    Args:
        database: where to ask for old snapshots.
        wait_seconds: how long to wait, in all, for whoever keeps one (BACKFILL_WAIT_FOR_SNAPSHOTS).
        counts: rows written so far, and those of them that stayed in their page.
    """

    reason = "snapshots"

    def __init__(self, database: Database, wait_seconds: float, counts: Callable[[], tuple[int, int]]) -> None:
        self.words: str | None = None
        self._database = database
        self._left = wait_seconds
        self._asked_at = 0.0
        self._counts = counts
        self._looked_at = (0, 0)
        self._told: set[str] = set()

    def begin(self) -> None:
        """Nothing to prepare."""

    def end(self) -> None:
        """Nothing to put away."""

    def seconds_left(self, rows: int, waited: float) -> float:  # noqa: ARG002 - counted by the writer
        """Until the next look at whoever is waited for; 0 where nobody is."""
        written, in_page = self._counts()
        if self.words is None:
            rows_since, in_page_since = written - self._looked_at[0], in_page - self._looked_at[1]
            if rows_since < _ROWS_BETWEEN_LOOKS:
                return 0.0
            self._looked_at = (written, in_page)
            if in_page_since / rows_since >= _LEAST_SHARE:
                return 0.0
            self._tell(in_page_since / rows_since)
        return self._wait()

    def _wait(self) -> float:
        now = time.monotonic()
        if self.words is not None:
            self._left -= now - self._asked_at
        self._asked_at = now
        holders = self._holders() if self._left > 0 else ()
        if not holders:
            self.words = None
            return 0.0
        self.words = f"an old snapshot keeps its pages full (BACKFILL_WAIT_FOR_SNAPSHOTS): {holders[0]}"
        return min(_LOOK_SECONDS, self._left)

    def _tell(self, share: float) -> None:
        holders = self._holders()
        blame = holders[0] if holders else ""
        if blame in self._told:
            return
        self._told.add(blame)
        if holders:
            logger.warning(
                "%.0f%% of the updates stay in their page, the others go to every index of the table, since row versions cannot "
                "be cleared away while an old snapshot lasts: %s",
                100 * share,
                blame,
            )
        else:
            logger.info(
                "%.0f%% of the updates stay in their page, the others go to every index of the table: its rows have no room to "
                "grow, or the new column is indexed already",
                100 * share,
            )

    def _holders(self) -> tuple[str, ...]:
        try:
            with self._database.autocommit() as connection:
                return old_snapshots(connection)
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.debug("old snapshots could not be asked for: %s", error)
            return ()
