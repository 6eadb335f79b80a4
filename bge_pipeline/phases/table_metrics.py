"""The metrics of the table, for Prometheus: what the database knows of a migration, whoever works on it and wherever.

They are read beside the scrapes, in a thread of their own, so that a scrape never waits for the database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.activity import is_being_indexed, read_activity
from bge_pipeline.database.heartbeat import read_workers
from bge_pipeline.database.movement import DoneReader, seconds_since_movement
from bge_pipeline.database.pause import PauseReader
from bge_pipeline.database.pending import count_pending, has_pending_index, pending_share
from bge_pipeline.database.quarantine import count_by_error
from bge_pipeline.database.replication_lag import find_lags
from bge_pipeline.database.size import rows_now, table_bytes
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.row_writing import first_line
from bge_pipeline.phases.state import MigrationState, Phase, read_state

logger = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
_SHARE_OF_TIME = 0.05
"""Of a connection's time that looks may take: after a slow one the next waits the longer."""
_JOIN_SECONDS = 5.0
"""That the end waits for a look that is under way; its thread does not keep the process."""
_COUNTED_ROWS = 1_000_000
"""Larger tables are not counted while the bulk of them is pending, but estimated."""


class TableMetrics(Collector):
    """Serves what the last look at the table found."""

    def __init__(self, migration: Migration) -> None:
        self._database = migration.database
        self._target = migration.target
        self._pause = PauseReader(self._target)
        self._done = DoneReader(self._target)
        self._found: Sequence[Metric] = ()
        self._ended = threading.Event()

    def collect(self) -> Iterable[Metric]:
        """What the last look found."""
        return self._found

    def describe(self) -> Iterable[Metric]:
        """Every metric that there is, without values."""
        return _Families().all()

    @contextmanager
    def keeping_up(self) -> Iterator[None]:
        """Look at the table now and then until the block ends."""
        thread = threading.Thread(target=self._go_on, name="table-metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(_JOIN_SECONDS)

    def look(self) -> None:
        """Look at the table now; where it cannot be read, `bge_pipeline_table_readable` says so, and nothing else is told."""
        families, table, started = _Families(), str(self._target), time.perf_counter()
        try:
            with explaining_text(self._target), self._database.autocommit() as connection:
                self._read(connection, families)
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.warning("metrics of %s cannot be read: %s", table, first_line(error))
            families = _Families()
            families.readable.add_metric([table], 0)
        else:
            families.readable.add_metric([table], 1)
        families.look_seconds.add_metric([table], time.perf_counter() - started)
        self._found = families.all()

    def _read(self, connection: Connection, families: _Families) -> None:
        target, table = self._target, str(self._target)
        state = read_state(connection, target)
        for phase in get_args(Phase):
            families.phase.add_metric([table, phase], float(phase == state.phase))
        rows = rows_now(connection, target)
        if rows is not None:
            families.rows.add_metric([table], rows)
        families.bytes.add_metric([table], table_bytes(connection, target))
        if state.phase != "legacy":
            families.pending.add_metric([table], self._pending(connection, state, rows))
            families.quarantined.add_metric([table], sum(count_by_error(connection, target).values()))
        still = seconds_since_movement(connection, target)
        if still is not None:
            families.still.add_metric([table], still)
        latest = self._pause.look(connection)
        families.paused.add_metric([table], float(latest is not None and latest.paused))
        families.being_indexed.add_metric([table], float(is_being_indexed(connection, target)))
        workers = read_workers(connection, target)
        families.workers.add_metric([table, "working"], sum(not worker.is_silent for worker in workers))
        families.workers.add_metric([table, "silent"], sum(worker.is_silent for worker in workers))
        rate = sum(worker.rows_per_second for worker in workers if not worker.is_silent)
        families.rows_per_second.add_metric([table], rate)
        for kind, count in self._done.look(connection).items():
            families.done[kind].add_metric([table], count)
        activity = read_activity(connection, target)
        families.updates.add_metric([table], activity.updates)
        families.hot_updates.add_metric([table], activity.hot_updates)
        families.waiting.add_metric([table], activity.waiting_sessions)
        families.longest_wait.add_metric([table], activity.longest_wait_seconds)
        for lag in find_lags(connection):
            families.lag.add_metric([lag.name, lag.kind], lag.bytes)

    def _pending(self, connection: Connection, state: MigrationState, rows: int | None) -> int:
        column = state.filled.name
        is_large = rows is not None and rows > _COUNTED_ROWS
        if is_large and not has_pending_index(connection, self._target, column):
            return round(pending_share(connection, self._target, column) * (rows or 0))
        return count_pending(connection, self._target, column)

    def _go_on(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            started = time.monotonic()
            self.look()
            pause = max(LOOK_SECONDS, (time.monotonic() - started) / _SHARE_OF_TIME)


class AllTables(Collector):
    """The metrics of several tables as those of one collector, since Prometheus wants each name once."""

    def __init__(self, tables: Sequence[TableMetrics]) -> None:
        self._tables = tables

    def collect(self) -> Iterable[Metric]:
        """What the last look at each of them found; what is of a server that two of them share, once."""
        families, seen = _Families().all(), set()
        for table in self._tables:
            for family, found in zip(families, table.collect(), strict=False):
                for sample in found.samples:
                    series = (sample.name, *sorted(sample.labels.items()))
                    if series not in seen:
                        seen.add(series)
                        family.samples.append(sample)
        return families

    def describe(self) -> Iterable[Metric]:
        """Every metric that there is, without values."""
        return _Families().all()


class _Families:
    """The metrics of one look, empty at first."""

    def __init__(self) -> None:
        of_table = ["table"]
        self.readable = GaugeMetricFamily(
            "bge_pipeline_table_readable", "Whether the last look at the table succeeded", labels=of_table
        )
        self.look_seconds = GaugeMetricFamily(
            "bge_pipeline_table_look_seconds", "How long the last look took", labels=of_table
        )
        self.phase = GaugeMetricFamily(
            "bge_pipeline_table_phase", "1 for the phase that the table is in", labels=["table", "phase"]
        )
        self.rows = GaugeMetricFamily("bge_pipeline_table_rows", "Rows by the server's statistics", labels=of_table)
        self.bytes = GaugeMetricFamily(
            "bge_pipeline_table_bytes", "Size with indexes and out-of-line values", labels=of_table
        )
        self.pending = GaugeMetricFamily(
            "bge_pipeline_table_pending_rows",
            "Rows that wait for a vector; of more than a million rows an estimate until few are left",
            labels=of_table,
        )
        self.quarantined = GaugeMetricFamily(
            "bge_pipeline_table_quarantined_rows", "Rows put aside because they cannot be embedded", labels=of_table
        )
        self.still = GaugeMetricFamily(
            "bge_pipeline_table_still_seconds",
            "Seconds since a vector was last written or a phase ended",
            labels=of_table,
        )
        self.paused = GaugeMetricFamily("bge_pipeline_table_paused", "Whether somebody has paused it", labels=of_table)
        self.being_indexed = GaugeMetricFamily(
            "bge_pipeline_table_being_indexed", "Whether an index of it is built now", labels=of_table
        )
        self.workers = GaugeMetricFamily(
            "bge_pipeline_table_workers",
            "Processes that fill it, on all machines: working, or silent for a minute",
            labels=["table", "state"],
        )
        self.rows_per_second = GaugeMetricFamily(
            "bge_pipeline_table_rows_per_second", "Rows a second of all working processes together", labels=of_table
        )
        self.done = {
            "rows": CounterMetricFamily(
                "bge_pipeline_table_rows_written", "Rows written by all processes so far, ended or not", labels=of_table
            ),
            "in_page": CounterMetricFamily(
                "bge_pipeline_table_rows_written_in_page",
                "Of these, rows that stayed in their page (HOT)",
                labels=of_table,
            ),
            "tokens": CounterMetricFamily(
                "bge_pipeline_table_tokens_read", "Tokens read by all processes so far", labels=of_table
            ),
        }
        self.updates = CounterMetricFamily(
            "bge_pipeline_table_updates",
            "Updates of rows by whoever it was, as the server counts them",
            labels=of_table,
        )
        self.hot_updates = CounterMetricFamily(
            "bge_pipeline_table_hot_updates", "Of these, updates that touched no index (HOT)", labels=of_table
        )
        self.waiting = GaugeMetricFamily(
            "bge_pipeline_table_waiting_sessions", "Sessions that wait for a lock on the table now", labels=of_table
        )
        self.longest_wait = GaugeMetricFamily(
            "bge_pipeline_table_longest_wait_seconds", "For how long the first of them has waited", labels=of_table
        )
        self.lag = GaugeMetricFamily(
            "bge_pipeline_replication_lag_bytes",
            "Log that a standby or slot is behind, as far as this role may see",
            labels=["name", "kind"],
        )

    def all(self) -> list[Metric]:
        """In the order above."""
        found: list[Metric] = []
        for value in vars(self).values():
            found += value.values() if isinstance(value, dict) else [value]
        return found
