"""Which process executes a run, so that a run whose process was killed does not count as under way for ever.

Dagster notices the death of a process that its own code server started. It does not notice that of `dagster job execute`,
nor a machine that lost power; such a run would hold its pool, and every later run would wait in the queue.
"""

import socket
from pathlib import Path

import dagster as dg
import psutil

WORKER_TAG = ".dagster/bge_pipeline/worker"
"""Dagster shows no tag that begins so: in the list of runs there is room for the partition instead."""


def this_worker() -> str:
    """This process: host, space of process numbers, number, and start, as numbers are used again."""
    process = psutil.Process()
    return f"{_place()}/{process.pid}/{process.create_time():.2f}"


def is_gone(worker: str) -> bool:
    """Whether that process ran here and has ended; one that runs elsewhere cannot be seen and is not said to be gone."""
    place, pid, created = worker.rsplit("/", 2)
    if place != _place():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


def fail_runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Mark as failed the runs whose process is gone; returns them."""
    under_way = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    orphans = [
        run
        for run in instance.get_runs(filters=dg.RunsFilter(statuses=under_way))
        if WORKER_TAG in run.tags and is_gone(run.tags[WORKER_TAG])
    ]
    for run in orphans:
        instance.report_run_failed(
            run,
            "The process of this run is gone: it was killed. What it committed is kept. Next: a partition is run again by "
            "the sensor rerun_failed_partitions; anything else is launched again by hand and goes on with what is left.",
        )
    return orphans


def _place() -> str:
    numbers = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{numbers.stat().st_ino if numbers.exists() else 0}"
