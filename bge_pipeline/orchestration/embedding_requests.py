"""When new rows are embedded: at once, later where runs failed or could not write what waits, or when a person says so."""

import time
from collections.abc import Sequence

import dagster as dg

from bge_pipeline.orchestration import run_history
from bge_pipeline.orchestration.rerun_policy import Attempt, RerunPolicy
from bge_pipeline.settings import DagsterSettings

_BUDGET_SECONDS = 86_400.0
"""A budget is that of a run, and meant as that of a day: what cron costs with `bge-pipeline embed` once a day."""


def request_embedding(
    instance: dg.DagsterInstance, settings: DagsterSettings, job_name: str, pending: int
) -> dg.SensorResult | dg.SkipReason:
    """A run of the job for the rows that wait, or why there is none now: after failures alone they are not given up on."""
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
    if last.was_cancelled:
        return f"run {last.run_id[:8]} of {job_name} was cancelled by somebody; launch {job_name} to go on"
    if last.has_spent_budget and (left := (last.failed_at or 0.0) + _BUDGET_SECONDS - now) > 0:
        spent = f"run {last.run_id[:8]} of {job_name} has spent its budget, and the next has it anew"
        return f"{spent}: in {left / 3_600:.1f} hours, or when somebody launches {job_name}"
    if last.left_pending is not None and pending > last.left_pending:
        return None
    failures = sum(not attempt.was_cancelled for attempt in attempts)
    left = (last.failed_at or 0.0) + policy.pause_seconds(failures) - now
    if left <= 0:
        return None
    if last.left_pending is not None:
        how_it_went = f"could write none in {failures} runs: they are locked, or edited all the while"
    else:
        how_it_went = f"failed {failures} times"
    return f"{job_name} {how_it_went}, next try in {left:.0f} s"
