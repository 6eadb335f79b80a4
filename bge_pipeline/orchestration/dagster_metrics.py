"""The metrics of Dagster's books, for Prometheus: runs by status, and how many partitions are done."""

from collections.abc import Iterable, Sequence

import dagster as dg
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.run_history import never_materialized
from bge_pipeline.orchestration.served import ServedTable

_STATUSES = {
    "queued": dg.DagsterRunStatus.QUEUED,
    "started": dg.DagsterRunStatus.STARTED,
    "failed": dg.DagsterRunStatus.FAILURE,
    "succeeded": dg.DagsterRunStatus.SUCCESS,
}


class DagsterMetrics(Collector):
    """Asks the instance at each scrape, which takes four counts and the list of partitions."""

    def __init__(self, instance: dg.DagsterInstance, tables: Sequence[ServedTable]) -> None:
        self._instance = instance
        self._tables = tables

    def collect(self) -> Iterable[Metric]:
        """As of now."""
        runs, partitions = _families()
        for name, status in _STATUSES.items():
            runs.add_metric([name], self._instance.get_runs_count(dg.RunsFilter(statuses=[status])))
        total = sum(len(known_keys(self._instance, table)) for table in self._tables)
        to_come = sum(len(never_materialized(self._instance, table)) for table in self._tables)
        partitions.add_metric(["done"], total - to_come)
        partitions.add_metric(["to_come"], to_come)
        return [runs, partitions]

    def describe(self) -> Iterable[Metric]:
        """Every metric that there is, without values."""
        return _families()


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("bge_pipeline_dagster_runs", "Runs in Dagster's records, by status", labels=["status"]),
        GaugeMetricFamily(
            "bge_pipeline_dagster_partitions",
            "Partitions of the backfills of all tables: done, or to_come since the column was added",
            labels=["state"],
        ),
    )
