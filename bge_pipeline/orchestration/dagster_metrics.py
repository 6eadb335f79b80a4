"""The metrics of Dagster's books, for Prometheus: runs by status, and how many partitions are done."""

import logging
from collections.abc import Iterable, Sequence

import dagster as dg
from prometheus_client.core import GaugeMetricFamily, Metric

from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.run_history import never_materialized
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.row_writing import first_line
from bge_pipeline.telemetry.looking import LookingCollector

logger = logging.getLogger(__name__)

_STATUSES = {
    "queued": dg.DagsterRunStatus.QUEUED,
    "started": dg.DagsterRunStatus.STARTED,
    "failed": dg.DagsterRunStatus.FAILURE,
    "succeeded": dg.DagsterRunStatus.SUCCESS,
}


class DagsterMetrics(LookingCollector):
    """Serves what the last look at Dagster's records found, which takes four counts and the list of partitions."""

    def __init__(self, instance: dg.DagsterInstance, tables: Sequence[ServedTable]) -> None:
        super().__init__()
        self._instance = instance
        self._tables = tables

    def describe(self) -> Iterable[Metric]:
        """Every metric that there is, without values."""
        return _families()

    def find(self) -> Sequence[Metric]:
        """The records as they are; where they cannot be read, `bge_pipeline_dagster_readable` says so, and nothing else is."""
        readable, runs, partitions = _families()
        try:
            self._read(runs, partitions)
        except Exception as error:  # noqa: BLE001 - Dagster has no error of its own for a database that is away
            logger.warning("metrics of Dagster cannot be read: %s", first_line(error))
            readable, runs, partitions = _families()
            readable.add_metric([], 0)
        else:
            readable.add_metric([], 1)
        return readable, runs, partitions

    def _read(self, runs: GaugeMetricFamily, partitions: GaugeMetricFamily) -> None:
        for name, status in _STATUSES.items():
            runs.add_metric([name], self._instance.get_runs_count(dg.RunsFilter(statuses=[status])))
        total = sum(len(known_keys(self._instance, table)) for table in self._tables)
        to_come = sum(len(never_materialized(self._instance, table)) for table in self._tables)
        partitions.add_metric(["done"], total - to_come)
        partitions.add_metric(["to_come"], to_come)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "bge_pipeline_dagster_readable", "Whether the last look at Dagster's records succeeded", labels=[]
        ),
        GaugeMetricFamily("bge_pipeline_dagster_runs", "Runs in Dagster's records, by status", labels=["status"]),
        GaugeMetricFamily(
            "bge_pipeline_dagster_partitions",
            "Partitions of the backfills of all tables: done, or to_come since the column was added",
            labels=["state"],
        ),
    )
