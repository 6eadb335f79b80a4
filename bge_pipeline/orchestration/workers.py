"""Which process executes a run, so that a run whose process was killed does not count as under way for ever.

Dagster notices the death of a process that its own code server started. It does not notice that of `dagster job execute`,
nor a machine that lost power; such a run would hold its pool, and every later run would wait in the queue. A process of
this machine is looked up; one of another machine is gone when its heartbeat in the table's journal has stopped.
"""

import time
from collections.abc import Callable, Mapping

import dagster as dg

from bge_pipeline.database.heartbeat import Worker
from bge_pipeline.process import in_words, is_gone, runs_here

_CLOCKS_DIFFER = 5.0
"""Seconds by which the clocks of machines may, where an entry of an earlier version names no run."""
WORKER_TAG = ".dagster/bge_pipeline/worker"
"""Dagster shows no tag that begins so: in the list of runs there is room for the partition instead."""


def fail_runs_without_process(
    instance: dg.DagsterInstance, silent: Callable[[], Mapping[str, Worker]] = dict
) -> list[dg.DagsterRun]:
    """Mark as failed the runs whose process is gone, as cancelled those that a person terminated; returns them.

    Args:
        instance: where the runs are.
        silent: gives the processes whose heartbeat stopped long ago, each with its last entry; asked only where a run is
            under way on another machine.
    """
    under_way = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    runs = [run for run in instance.get_runs(filters=dg.RunsFilter(statuses=under_way)) if WORKER_TAG in run.tags]
    stopped = silent() if any(not runs_here(run.tags[WORKER_TAG]) for run in runs) else {}
    orphans = []
    for listed in runs:
        worker = listed.tags[WORKER_TAG]
        if worker not in stopped and not is_gone(worker):
            continue
        record = instance.get_run_record_by_id(listed.run_id)
        # It may have ended since it was listed, and its process with it.
        if record is None or (run := record.dagster_run).is_finished:
            continue
        if worker in stopped and not _is_of(record, stopped[worker]) and not is_gone(worker):
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
