"""When new rows are embedded: at once, or later where the last runs failed or could not write what waits."""

import time
from collections.abc import Sequence

import dagster as dg

from bge_pipeline.orchestration import run_history
from bge_pipeline.orchestration.rerun_policy import Attempt, RerunPolicy
from bge_pipeline.settings import DagsterSettings


def request_embedding(
    instance: dg.DagsterInstance, settings: DagsterSettings, job_name: str, pending: int
) -> dg.SensorResult | dg.SkipReason:
    """A run of the job for the rows that wait, which are never given up on, or why there is none now."""
    attempts = run_history.consecutive_failures(instance, job_name)
    policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
    prevented = why_later(job_name, attempts, pending, policy, time.time()) if attempts else None
    if prevented is not None:
        return dg.SkipReason(f"{pending:,} rows are pending; {prevented}")
    return dg.SensorResult(run_requests=[dg.RunRequest(job_name=job_name)])


def why_later(job_name: str, attempts: Sequence[Attempt], pending: int, policy: RerunPolicy, now: float) -> str | None:
    """Why no run is begun now; None where one is.

    Args:
        job_name: what a person launches.
        attempts: the runs of the job since its last success, oldest first; at least one.
        pending: rows that wait now. Where they are more than the last run left, it is not the stuck ones alone that wait.
        policy: says how long to wait after a failure.
        now: seconds since the epoch.
    """
    last = attempts[-1]
    if last.left_pending is not None and pending > last.left_pending:
        return None
    left = (last.failed_at or 0.0) + policy.pause_seconds(len(attempts)) - now
    if left <= 0:
        return None
    if last.left_pending is not None:
        how_it_went = f"could write none in {len(attempts)} runs: they are locked, or edited all the while"
    else:
        how_it_went = f"failed {len(attempts)} times"
    return f"{job_name} {how_it_went}, next try in {left:.0f} s"
