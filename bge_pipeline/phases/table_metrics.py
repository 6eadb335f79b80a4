"""The metrics of the table, for Prometheus: what the database knows of a migration, whoever works on it and wherever."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
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
from bge_pipeline.telemetry.looking import LookingCollector

logger = logging.getLogger(__name__)

_COUNTED_ROWS = 1_000_000
"""Larger tables are not counted while the bulk of them is pending, but estimated."""


class TableMetrics(LookingCollector):
    """Serves what the last look at the table found; each series names database, table and TARGET_EMBEDDING_COLUMN."""

    def __init__(self, migration: Migration) -> None:
        super().__init__()
        self._database = migration.database
        self._target = migration.target
        self._labels = [self._database.place, str(self._target), self._target.embedding_column]
        self._pause = PauseReader(self._target)
        self._done = DoneReader(self._target)

    def describe(self) -> Iterable[Metric]:
        """Every metric that there is, without values."""
        return _Families().all()

    def find(self) -> Sequence[Metric]:
        """The table as it is; where it cannot be read, `bge_pipeline_table_readable` says so, and nothing else is told."""
        families, started = _Families(), time.perf_counter()
        try:
            with explaining_text(self._target), self._database.autocommit() as connection:
                self._read(connection, families)
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.warning("metrics of %s cannot be read: %s", self._target, first_line(error))
            families = _Families()
            families.readable.add_metric(self._labels, 0)
        else:
            families.readable.add_metric(self._labels, 1)
        families.look_seconds.add_metric(self._labels, time.perf_counter() - started)
        return families.all()

    def _read(self, connection: Connection, families: _Families) -> None:
        target, labels = self._target, self._labels
        state = read_state(connection, target)
        for phase in get_args(Phase):
            families.phase.add_metric([*labels, phase], float(phase == state.phase))
        rows = rows_now(connection, target)
        if rows is not None:
            families.rows.add_metric(labels, rows)
        families.bytes.add_metric(labels, table_bytes(connection, target))
        if state.phase != "legacy":
            families.pending.add_metric(labels, self._pending(connection, state, rows))
            families.quarantined.add_metric(labels, sum(count_by_error(connection, target).values()))
        still = seconds_since_movement(connection, target)
        if still is not None:
            families.still.add_metric(labels, still)
        latest = self._pause.look(connection)
        families.paused.add_metric(labels, float(latest is not None and latest.paused))
        families.being_indexed.add_metric(labels, float(is_being_indexed(connection, target)))
        workers = read_workers(connection, target)
        families.workers.add_metric([*labels, "working"], sum(not worker.is_silent for worker in workers))
        families.workers.add_metric([*labels, "silent"], sum(worker.is_silent for worker in workers))
        rate = sum(worker.rows_per_second for worker in workers if not worker.is_silent)
        families.rows_per_second.add_metric(labels, rate)
        for kind, count in self._done.look(connection).items():
            families.done[kind].add_metric(labels, count)
        activity = read_activity(connection, target)
        families.updates.add_metric(labels, activity.updates)
        families.hot_updates.add_metric(labels, activity.hot_updates)
        families.waiting.add_metric(labels, activity.waiting_sessions)
        families.longest_wait.add_metric(labels, activity.longest_wait_seconds)
        for lag in find_lags(connection):
            families.lag.add_metric([lag.name, lag.kind], lag.bytes)
        families.lag.samples = _farthest_behind(families.lag.samples)

    def _pending(self, connection: Connection, state: MigrationState, rows: int | None) -> int:
        column = state.filled.name
        is_large = rows is not None and rows > _COUNTED_ROWS
        if is_large and not has_pending_index(connection, self._target, column):
            return round(pending_share(connection, self._target, column) * (rows or 0))
        return count_pending(connection, self._target, column)


class AllTables(Collector):
    """The metrics of several tables as those of one collector, since Prometheus wants each name once."""

    def __init__(self, tables: Sequence[TableMetrics]) -> None:
        self._tables = tables

    def collect(self) -> Iterable[Metric]:
        """What the last look at each of them found."""
        families = _Families()
        for table in self._tables:
            for family, found in zip(families.all(), table.collect(), strict=False):
                family.samples += found.samples
        families.lag.samples = _farthest_behind(families.lag.samples)
        return families.all()

    def describe(self) -> Iterable[Metric]:
        """Every metric that there is, without values."""
        return _Families().all()


def _farthest_behind(lags: Iterable[Sample]) -> list[Sample]:
    """Of all that bear one name the one farthest behind: standbys may, and two tables see those of one server."""
    farthest = {tuple(sorted(lag.labels.items())): lag for lag in sorted(lags, key=lambda lag: lag.value)}
    return list(farthest.values())


class _Families:
    """The metrics of one look, empty at first."""

    def __init__(self) -> None:
        of_table = ["database", "table", "column"]
        self.readable = GaugeMetricFamily(
            "bge_pipeline_table_readable", "Whether the last look at the table succeeded", labels=of_table
        )
        self.look_seconds = GaugeMetricFamily(
            "bge_pipeline_table_look_seconds", "How long the last look took", labels=of_table
        )
        self.phase = GaugeMetricFamily(
            "bge_pipeline_table_phase", "1 for the phase that the table is in", labels=[*of_table, "phase"]
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
            labels=[*of_table, "state"],
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
            "Log that a standby or slot is behind, as far as this role may see; of one name, the farthest behind",
            labels=["name", "kind"],
        )

    def all(self) -> list[Metric]:
        """In the order above."""
        found: list[Metric] = []
        for value in vars(self).values():
            found += value.values() if isinstance(value, dict) else [value]
        return found
