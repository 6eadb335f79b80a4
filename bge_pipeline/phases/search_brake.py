"""The application's search as a brake: a probe search every few seconds, as slow as before the backfill or slower."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from psycopg2.errors import QueryCanceled
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.search.column import SearchedColumn, configured_scan, read_column
from bge_pipeline.search.statements import dense_statement
from bge_pipeline.search.wire import fetch

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 2.0
_SEARCHES = 5
"""In one probe: some 1% of one processor where a search takes 5 ms."""
_WINDOW = 20
"""Latest searches of which the p95 is taken: those of the last eight seconds."""
_SEARCHES_BEFORE = 40
_QUERIES = 50
_NEIGHBOURS = 10
_NOISE_SECONDS = 0.001
"""A search that is slower by less than this is not called slower, whatever the ratio."""
_LONGEST_SEARCH_MS = 30_000
"""A search that takes longer is ended, and counts as one that took as long."""
_PATIENCE_SECONDS = 0.2
"""For a search under way as the backfill ends."""


class Backoff:
    """How long to pause between batches: ever longer while search is too slow, ever shorter when it is not."""

    first_seconds = 0.25
    longest_seconds = 30.0

    def __init__(self) -> None:
        self.seconds = 0.0

    def take(self, *, is_slow: bool) -> None:
        """Take note of one look at the search."""
        if is_slow:
            self.seconds = min(self.longest_seconds, max(self.first_seconds, 2 * self.seconds))
        else:
            self.seconds = self.seconds / 2 if self.seconds > self.first_seconds else 0.0


class SearchBrake:
    """Pauses between batches while the p95 of probe searches is above MAX_SEARCH_SLOWDOWN times that of before.

    The probe searches the column that the application's search reads, with vectors that are stored in it and at the
    settings of a search of ours, on a connection and in a thread of its own. `before` is measured as the backfill begins.
    """

    reason = "search"

    def __init__(self, migration: Migration, max_slowdown: float) -> None:
        self.words: str | None = None
        self._database = migration.database
        self._settings = migration.settings
        self._max_slowdown = max_slowdown
        self._backoff = Backoff()
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._before = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._session: RawConnection | None = None

    def begin(self) -> None:
        """Measure how long a search takes before the backfill, and go on measuring beside it."""
        connection = self._open()
        try:
            probe = self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        if probe is None:
            connection.close()
            return
        self._session = cast("RawConnection", connection.connection.dbapi_connection)
        self._thread = threading.Thread(target=self._watch, args=(connection, *probe), name="search-probe")
        self._thread.start()

    def end(self) -> None:
        """End the probe, also in the middle of a search that takes long."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None and self._session is not None:
            thread.join(_PATIENCE_SECONDS)
            if thread.is_alive():
                self._session.cancel()
            thread.join()

    def seconds_left(self, rows: int, waited: float) -> float:  # noqa: ARG002 - the pause is the same for any batch
        """Until the pause after a batch, as long as it is now, is over."""
        return self._backoff.seconds - waited

    def take(self, seconds: Sequence[float]) -> None:
        """Take note of one probe: seconds of each of its searches."""
        self._seconds.extend(seconds)
        if len(self._seconds) < _WINDOW / 2:
            return  # the p95 of a few is the slowest of them
        now = p95(self._seconds)
        self._backoff.take(is_slow=now > self._before * self._max_slowdown and now - self._before > _NOISE_SECONDS)
        self.words = (
            f"search takes {now * 1e3:,.1f} ms at p95, {self._before * 1e3:,.1f} ms before the backfill "
            f"(MAX_SEARCH_SLOWDOWN={self._max_slowdown:g})"
            if self._backoff.seconds
            else None
        )

    def _open(self) -> Connection:
        connection = self._database.own_session("bge-pipeline search probe")
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"SET statement_timeout = {_LONGEST_SEARCH_MS}"))
        return connection

    def _prepare(self, connection: Connection) -> tuple[SearchedColumn, NDArray[np.float32]] | None:
        """What to search and with which vectors, `before` measured; None where there is nothing to watch."""
        try:
            searched = read_column(connection, self._settings)
            name = searched.column.name
            queries = sample_vectors(connection, searched.target, [name], _QUERIES).vectors[name]
            if searched.index is None or not len(queries):
                lacks = "vectors" if searched.index is not None else "vector index: a search reads the whole table"
                logger.warning("MAX_SEARCH_SLOWDOWN has no effect: %s has no %s", searched, lacks)
                return None
            self._probe(connection, searched, queries, _SEARCHES_BEFORE)  # what it reads is in memory afterwards
            self._before = p95(self._probe(connection, searched, queries, _SEARCHES_BEFORE))
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.warning("MAX_SEARCH_SLOWDOWN has no effect, the probe search failed: %s", error)
            return None
        return searched, queries

    def _watch(self, connection: Connection, searched: SearchedColumn, queries: NDArray[np.float32]) -> None:
        try:
            while not self._ended.wait(_EVERY_SECONDS):
                self.take(self._probe(connection, searched, queries, _SEARCHES))
        except (BgePipelineError, SQLAlchemyError) as error:
            # As where another process exchanges the columns meanwhile, or the server is restarted.
            logger.warning(
                "the probe search failed, MAX_SEARCH_SLOWDOWN is not watched in this run any more: %s", error
            )
            self._backoff.seconds, self.words = 0.0, None
        finally:
            connection.close()

    def _probe(
        self, connection: Connection, searched: SearchedColumn, queries: NDArray[np.float32], searches: int
    ) -> list[float]:
        """Seconds of each search."""
        session = configured_scan(searched, self._settings, _NEIGHBOURS)
        seconds = []
        for number in np.random.default_rng().integers(len(queries), size=searches):
            started = time.perf_counter()
            try:
                fetch(connection, session, dense_statement(searched, queries[number], _NEIGHBOURS))
            except DBAPIError as error:
                if not isinstance(error.orig, QueryCanceled):
                    raise
                if self._ended.is_set():
                    break
            seconds.append(time.perf_counter() - started)
        return seconds


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile."""
    return float(np.percentile(list(seconds), 95))
