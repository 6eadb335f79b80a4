"""Which process executes a run, so that a run whose process was killed does not count as under way for ever.

Dagster notices the death of a process that its own code server started. It does not notice that of `dagster job execute`,
nor a machine that lost power; such a run would hold its pool, and every later run would wait in the queue. A process of
this machine is looked up; one of another machine is gone when its heartbeat in the table's journal has stopped.
"""

from collections.abc import Callable, Collection

import dagster as dg

from bge_pipeline.process import in_words, is_gone, runs_here

WORKER_TAG = ".dagster/bge_pipeline/worker"
"""Dagster shows no tag that begins so: in the list of runs there is room for the partition instead."""


def fail_runs_without_process(
    instance: dg.DagsterInstance, silent: Callable[[], Collection[str]] = tuple
) -> list[dg.DagsterRun]:
    """Mark as failed the runs whose process is gone, as cancelled those that a person terminated; returns them.

    Args:
        instance: where the runs are.
        silent: gives the processes whose heartbeat stopped long ago; asked only where a run is under way on another machine.
    """
    under_way = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    runs = [run for run in instance.get_runs(filters=dg.RunsFilter(statuses=under_way)) if WORKER_TAG in run.tags]
    stopped = silent() if any(not runs_here(run.tags[WORKER_TAG]) for run in runs) else ()
    orphans = [run for run in runs if is_gone(run.tags[WORKER_TAG]) or run.tags[WORKER_TAG] in stopped]
    for run in orphans:
        told = f"The process of this run is gone, or its machine cannot be reached: {in_words(run.tags[WORKER_TAG])}."
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, f"{told} It had been terminated. What it committed is kept.")
            continue
        instance.report_run_failed(
            run,
            f"{told} What it committed is kept. Next: a partition is run again by the sensor rerun_failed_partitions; "
            "anything else is launched again by hand and goes on with what is left.",
        )
    return orphans
