"""Sensors: one runs failed partitions again, one embeds what the application writes. They look, decide and say what they saw.

Both run by default. Neither touches a table before somebody has expanded it, nor begins a backfill: before the swap, the
second one waits until every partition has been materialized once.
"""

import time
from collections.abc import Mapping

import dagster as dg

from bge_pipeline.database.connection import Database
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration import books, partitions
from bge_pipeline.orchestration.jobs import backfill_job, embed_pending_job
from bge_pipeline.orchestration.rerun import Decision, GiveUp, Rerun, RerunPolicy
from bge_pipeline.orchestration.workers import fail_runs_without_process
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.verify import verify_nothing_pending
from bge_pipeline.settings import Settings, load_settings

_INTERVAL_SECONDS = 30
_LISTED = 5
_ATTEMPT_TAG = "bge_pipeline/attempt"


@dg.sensor(
    job=backfill_job,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs failed partitions of backfilled_embeddings again, later each time, up to MAX_PARTITION_ATTEMPTS runs.",
)
def rerun_failed_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request a run for each failed partition whose time has come."""
    try:
        settings = load_settings()
    except BgePipelineError as error:
        return dg.SkipReason(str(error))
    for orphan in fail_runs_without_process(context.instance):
        context.log.warning("the process of run %s is gone; the run is marked as failed", orphan.run_id)
    policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
    attempts = books.unmaterialized_attempts(context.instance)
    claimed = books.claimed_by_backfills(context.instance, attempts)
    now = time.time()
    decisions = {key: policy.decide(key, runs, now, is_claimed=key in claimed) for key, runs in attempts.items()}
    requests = [
        dg.RunRequest(partition_key=key, run_key=choice.run_key, tags={_ATTEMPT_TAG: str(choice.attempt)})
        for key, choice in decisions.items()
        if isinstance(choice, Rerun)
    ]
    total = len(partitions.known_keys(context.instance))
    if not requests:
        return dg.SkipReason(_left_alone(decisions, total))
    try:
        with Database.from_settings(settings) as database:
            database.require_answer()
    except BgePipelineError as error:
        return dg.SkipReason(f"{len(requests)} partitions wait to be run again: {error}")
    for key, choice in decisions.items():
        if isinstance(choice, GiveUp):
            context.log.warning("gave up on partition %s: %s", key, choice.reason)
    return dg.SensorResult(run_requests=requests)


@dg.sensor(
    jobs=[embed_pending_job, backfill_job],
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Embeds new and changed rows, before the swap once every partition is done, and ever after it. "
        "Adds a partition when the table has grown by PARTITION_ROWS rows."
    ),
)
def embed_new_rows(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request what the table's new rows need."""
    instance = context.instance
    under_way = books.unfinished_runs(instance, [embed_pending_job.name, backfill_job.name])
    if under_way:
        return dg.SkipReason(f"{under_way[0].job_name} is queued or under way in run {under_way[0].run_id[:8]}")
    if backfills := books.backfills_under_way(instance):
        return dg.SkipReason(f"Dagster backfill {backfills[0].backfill_id} is under way")
    try:
        settings = load_settings()
        with Database.from_settings(settings) as database:
            return _requests_for_new_rows(instance, database, settings)
    except BgePipelineError as error:
        return dg.SkipReason(str(error))


def _requests_for_new_rows(
    instance: dg.DagsterInstance, database: Database, settings: Settings
) -> dg.SensorResult | dg.SkipReason:
    phase = require_table(database, settings).phase
    if phase == "legacy":
        return dg.SkipReason("the table is in phase legacy: materialize schema_with_384_column to begin a migration")
    if phase in ("expanded", "backfilled"):
        keys, missing = partitions.known_keys(instance), books.never_materialized(instance)
        if missing or not keys:
            return dg.SkipReason(
                f"the table is in phase {phase} and {len(missing)} of {len(keys)} partitions have not been materialized: "
                "launch the backfill of backfilled_embeddings"
            )
    if grown := partitions.new_full_ranges(instance, database, settings):
        return dg.SensorResult(
            dynamic_partitions_requests=[partitions.id_ranges.build_add_request(grown)],
            run_requests=[
                dg.RunRequest(job_name=backfill_job.name, partition_key=key, run_key=f"grown:{key}") for key in grown
            ],
        )
    pending = verify_nothing_pending(database, settings).pending
    if not pending:
        return dg.SkipReason(f"the table is in phase {phase} and nothing is pending")
    return _request_embedding(instance, settings, pending)


def _request_embedding(
    instance: dg.DagsterInstance, settings: Settings, pending: int
) -> dg.SensorResult | dg.SkipReason:
    """New rows are never given up on; after failures the next try comes later."""
    failed = books.consecutive_failures(instance, embed_pending_job.name)
    if failed:
        policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
        left = (failed[-1].failed_at or 0.0) + policy.pause_seconds(len(failed)) - time.time()
        if left > 0:
            return dg.SkipReason(
                f"{pending:,} rows are pending; embed_pending_job failed {len(failed)} times, next try in {left:.0f} s"
            )
    return dg.SensorResult(run_requests=[dg.RunRequest(job_name=embed_pending_job.name)])


def _left_alone(decisions: Mapping[str, Decision], total: int) -> str:
    if not decisions:
        return f"none of {total} partitions has failed"
    # What needs a person comes first.
    ordered = sorted(decisions.items(), key=lambda item: not isinstance(item[1], GiveUp))
    lines = [
        f"{'gave up on ' if isinstance(choice, GiveUp) else ''}{key}: {choice.reason}"
        for key, choice in ordered[:_LISTED]
        if not isinstance(choice, Rerun)
    ]
    more = f"; and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return f"{len(decisions)} of {total} partitions are not materialized by their last run: {'; '.join(lines)}{more}"


SENSORS = [rerun_failed_partitions, embed_new_rows]
