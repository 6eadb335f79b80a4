"""Which process executes a run, so that a run whose process was killed does not count as under way for ever.

Dagster notices the death of a process that its own code server started. It does not notice that of `dagster job execute`,
nor a machine that lost power; such a run would hold its pool, and every later run would wait in the queue. A process of
this machine is looked up; one of another machine is gone when its heartbeat in the table's journal has stopped.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from bge_pipeline.database.heartbeat import GONE_SECONDS, Worker
from bge_pipeline.orchestration.own_tags import own_tag
from bge_pipeline.process import in_words, is_gone, runs_here

_CLOCKS_DIFFER = 5.0
"""Seconds by which the clocks of machines may, where an entry of an earlier version names no run."""
WORKER_TAG = ".dagster/bge_pipeline/worker"
"""Dagster shows no tag that begins so: in the list of runs there is room for the partition instead."""


@dataclass(frozen=True)
class Heard:
    """What heartbeats say of runs on other machines.

    Attributes:
        runs: seconds since the last one of each run that told of itself and did not say that it had ended.
        gone: the last entry of each process whose every heartbeat stopped long ago.
    """

    runs: Mapping[str, float] = field(default_factory=dict)
    gone: Mapping[str, Worker] = field(default_factory=dict)

    def is_gone(self, worker: str, record: dg.RunRecord) -> bool:
        """Whether that process was executing the run when it was last heard of, and that was long ago."""
        silent = self.runs.get(record.dagster_run.run_id)
        if silent is not None:
            return silent > GONE_SECONDS
        return worker in self.gone and _is_of(record, self.gone[worker])


def fail_runs_without_process(
    instance: dg.DagsterInstance, hear: Callable[[Sequence[str]], Heard] = lambda _: Heard()
) -> list[dg.DagsterRun]:
    """Mark as failed the runs whose process is gone, as cancelled those that a person terminated; returns them.

    Args:
        instance: where the runs are.
        hear: asks for the heartbeats of these runs, which are under way on other machines.
    """
    under_way = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    listed = ((run, own_tag(run, WORKER_TAG)) for run in instance.get_runs(dg.RunsFilter(statuses=under_way)))
    runs = [(run, worker) for run, worker in listed if worker is not None]
    elsewhere = [run.run_id for run, worker in runs if not runs_here(worker)]
    heard = hear(elsewhere) if elsewhere else Heard()
    orphans = []
    for begun, worker in runs:
        if begun.run_id not in elsewhere and not is_gone(worker):
            continue
        record = instance.get_run_record_by_id(begun.run_id)
        # It may have ended since it was listed, and its process with it.
        if record is None or (run := record.dagster_run).is_finished:
            continue
        if begun.run_id in elsewhere and not heard.is_gone(worker, record):
            continue
        orphans.append(run)
        told = f"The process of this run is gone, or its machine cannot be reached: {in_words(worker)}."
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, f"{told} It had been terminated. What it committed is kept.")
            continue
        instance.report_run_failed(
            run,
            f"{told} What it committed is kept. Next: a partition is run again by the sensor rerun_failed_partitions; "
            "anything else is launched again by hand and goes on with what is left.",
        )
    return orphans


def _is_of(record: dg.RunRecord, entry: Worker) -> bool:
    """Whether a heartbeat is this run's, and not one of an earlier run of its process that could not say that it had ended."""
    if entry.run_id is not None:
        return entry.run_id == record.dagster_run.run_id
    return time.time() - entry.silent_seconds >= (record.start_time or 0.0) - _CLOCKS_DIFFER
