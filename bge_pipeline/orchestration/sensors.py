"""Sensors: failed partitions run again, what the application writes is embedded, and vectors of the old model are noticed.

They look, decide and say what they saw. All run by default. None touches a table before somebody has expanded it, nor
begins a backfill: before the swap, new rows wait until every partition has been materialized once, but for the searched
column of a table that was migrated before, in which nobody would find them meanwhile.
"""

import time
from collections.abc import Mapping, Sequence

import dagster as dg

from bge_pipeline.database.heartbeat import read_workers, seconds_since_heard
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration import partitions, run_history
from bge_pipeline.orchestration.asset_jobs import backfill_job, compare_job, status_job
from bge_pipeline.orchestration.cursors import read_kept
from bge_pipeline.orchestration.embedding_requests import request_embedding
from bge_pipeline.orchestration.jobs import embed_pending_job, keep_old_current_job
from bge_pipeline.orchestration.names import (
    BACKFILL_JOB,
    BACKFILLED,
    EMBED_PENDING_JOB,
    EXPAND_JOB,
    KEEP_OLD_CURRENT_JOB,
    SCHEMA,
    SWAPPED,
)
from bge_pipeline.orchestration.own_history import require_own_history
from bge_pipeline.orchestration.per_table import PerTable, per_table
from bge_pipeline.orchestration.priorities import RERUN, priority
from bge_pipeline.orchestration.rerun_policy import Decision, GiveUp, Rerun, RerunPolicy
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.orchestration.status_check import seen_now
from bge_pipeline.orchestration.workers import Heard, fail_runs_without_process
from bge_pipeline.phases.application_vectors import written_since
from bge_pipeline.phases.companion import count_companion_pending
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import paused_by
from bge_pipeline.phases.state import MigrationState, require_table
from bge_pipeline.phases.verify import verify_nothing_pending
from bge_pipeline.settings import Settings

_INTERVAL_SECONDS = 30
_COMPARE_INTERVAL_SECONDS = 600
_LISTED = 5
_PARTITIONS_PER_TICK = 1_000
"""Failed partitions that one tick of rerun_failed_partitions decides about; the next goes on behind them."""
_ATTEMPT_TAG = "bge_pipeline/attempt"


@per_table(
    lambda table: dg.sensor(
        name=table.called("rerun_failed_partitions"),
        job=backfill_job.of(table),
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs failed partitions of backfilled_embeddings again, later each time, up to MAX_PARTITION_ATTEMPTS runs.",
    )
)
def rerun_failed_partitions(context: dg.SensorEvaluationContext, table: ServedTable) -> dg.SensorResult | dg.SkipReason:
    """Request a run for each failed partition whose time has come."""
    try:
        settings = table.settings()
    except BgePipelineError as error:
        return dg.SkipReason(table.worded(str(error)))
    for orphan in fail_runs_without_process(context.instance, lambda run_ids: _heard(settings, run_ids)):
        context.log.warning("the process of run %s is gone; the run no longer counts as under way", orphan.run_id)
    policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
    found = run_history.unmaterialized(context.instance, table)
    looked_at = _next_of(found.failed, context.cursor)
    context.update_cursor(looked_at[-1] if len(looked_at) < len(found.failed) else "")
    attempts = run_history.attempts_at(context.instance, table, looked_at)
    claimed = run_history.claimed_by_backfills(context.instance, table, attempts)
    now = time.time()
    decisions = {key: policy.decide(key, runs, now, is_claimed=key in claimed) for key, runs in attempts.items()}
    requests = [
        dg.RunRequest(
            partition_key=key, run_key=choice.run_key, tags={_ATTEMPT_TAG: str(choice.attempt), **priority(RERUN)}
        )
        for key, choice in decisions.items()
        if isinstance(choice, Rerun)
    ]
    total = len(partitions.known_keys(context.instance, table))
    if not requests:
        return dg.SkipReason(_left_alone(decisions, found, total))
    try:
        with Migration.looked_at(settings) as migration:
            require_own_history(context.instance, table, migration)
            if pause := paused_by(migration):
                return dg.SkipReason(f"{len(requests)} partitions wait to be run again: the table is {pause}")
    except BgePipelineError as error:
        return dg.SkipReason(f"{len(requests)} partitions wait to be run again: {table.worded(str(error))}")
    for key, choice in decisions.items():
        if isinstance(choice, GiveUp):
            context.log.warning("gave up on partition %s: %s", key, choice.reason)
    return dg.SensorResult(run_requests=requests)


def _next_of(failed: Sequence[str], last: str | None) -> Sequence[str]:
    """Of the failed partitions, as many as a tick has time for: those behind the last that was looked at, or the first."""
    behind = [key for key in failed if key > (last or "")]
    return (behind or failed)[:_PARTITIONS_PER_TICK]


def _heard(settings: Settings, run_ids: Sequence[str]) -> Heard:
    """What heartbeats say of these runs and of all processes; nothing where the database cannot be asked."""
    try:
        with Migration.looked_at(settings) as migration, migration.database.autocommit() as connection:
            runs = seconds_since_heard(connection, migration.target, run_ids)
            workers = read_workers(connection, migration.target)
    except BgePipelineError:
        return Heard()
    alive = {worker.process for worker in workers if not worker.is_gone}
    # In their order, so that the last entry of a process counts.
    return Heard(runs, {worker.process: worker for worker in workers if worker.process not in alive})


@per_table(
    lambda table: dg.sensor(
        name=table.called("embed_new_rows"),
        jobs=[embed_pending_job.of(table), backfill_job.of(table), keep_old_current_job.of(table)],
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Embeds new and changed rows, before the swap once every partition is done, and ever after it; with the old model, "
            "where search reads vectors that this project makes, at once. "
            "Adds a partition when the table has grown by PARTITION_ROWS rows."
        ),
    )
)
def embed_new_rows(context: dg.SensorEvaluationContext, table: ServedTable) -> dg.SensorResult | dg.SkipReason:
    """Request what the table's new rows need."""
    instance = context.instance
    jobs = [EXPAND_JOB, EMBED_PENDING_JOB, BACKFILL_JOB, KEEP_OLD_CURRENT_JOB]
    if under_way := run_history.unfinished_run(instance, table, jobs):
        return dg.SkipReason(f"{under_way.job_name} is queued or under way in run {under_way.run_id[:8]}")
    if backfills := run_history.backfills_under_way(instance, table):
        return dg.SkipReason(f"Dagster backfill {backfills[0].backfill_id} is under way")
    try:
        with Migration.looked_at(table.settings()) as migration:
            require_own_history(instance, table, migration)
            if pause := paused_by(migration):
                return dg.SkipReason(
                    f"the table is {pause}: launch {table.called('resume_job')}, or bge-pipeline resume"
                )
            return _requests_for_new_rows(instance, table, migration)
    except BgePipelineError as error:
        return dg.SkipReason(table.worded(str(error)))


def _requests_for_new_rows(
    instance: dg.DagsterInstance, table: ServedTable, migration: Migration
) -> dg.SensorResult | dg.SkipReason:
    state = require_table(migration)
    phase = state.phase
    run_history.take_up(instance, table, state)
    if phase == "legacy":
        begin = table.key(SCHEMA).to_user_string()
        return dg.SkipReason(f"the table is in phase legacy: materialize {begin} to begin a migration")
    beside = _pending_beside(instance, table, migration)
    # Their run was lost: the daemon was killed between adding them and asking for it, or somebody deleted them and it.
    without_run = run_history.never_begun(instance, table, partitions.grown_keys(instance, table))
    if why := _why_nobody_began(instance, table, state, without_run):
        if beside:
            return request_embedding(instance, migration.settings, table.called(KEEP_OLD_CURRENT_JOB), beside)
        return dg.SkipReason(f"the table is in phase {phase} and {why}")
    grown = partitions.new_full_ranges(instance, table, migration)
    if grown:
        partitions.note_cut(instance, table)
    if grown or without_run:
        # No run_key, since a partition may be deleted and added again; that a run was planned ends the asking.
        return dg.SensorResult(
            dynamic_partitions_requests=[table.partitions.build_add_request(grown)] if grown else [],
            run_requests=[
                dg.RunRequest(job_name=table.called(BACKFILL_JOB), partition_key=key) for key in (*without_run, *grown)
            ],
        )
    pending = verify_nothing_pending(migration).pending
    if not pending and not beside:
        return dg.SkipReason(f"the table is in phase {phase} and nothing is pending")
    job_name = table.called(EMBED_PENDING_JOB if pending else KEEP_OLD_CURRENT_JOB)
    return request_embedding(instance, migration.settings, job_name, pending or beside)


def _why_nobody_began(
    instance: dg.DagsterInstance, table: ServedTable, state: MigrationState, without_run: Sequence[str]
) -> str | None:
    """Why what is pending is the backfill's, which a person launches; None where the partitions are done, or the swap is.

    Those that the sensor added and that no run was asked for are the sensor's.
    """
    if state.new is None:
        return None
    if run_history.is_of_another_column(instance, table, state):
        begin = table.key(SCHEMA).to_user_string()
        return f"its partitions were cut for another column: materialize {begin}, which cuts them anew"
    keys, missing = partitions.known_keys(instance, table), run_history.never_materialized(instance, table)
    if keys and set(missing) <= set(without_run):
        return None
    backfill = table.key(BACKFILLED).to_user_string()
    return f"{len(missing)} of {len(keys)} partitions have not been materialized: launch the backfill of {backfill}"


def _pending_beside(instance: dg.DagsterInstance, table: ServedTable, migration: Migration) -> int:
    """Rows that wait for the old model's vector, where a run could give them one."""
    if migration.settings.keep_old_current == "off" or run_history.lately_without_old_model(instance, table):
        return 0
    return count_companion_pending(migration)


@per_table(
    lambda table: dg.sensor(
        name=table.called("notice_old_vectors"),
        job=compare_job.of(table),
        minimum_interval_seconds=_COMPARE_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Where old and new vectors have the same dimensions, and until retire: has what was written since the swap compared "
            "with the new model, since PostgreSQL would take the old one's vectors in silence."
        ),
    )
)
def notice_old_vectors(context: dg.SensorEvaluationContext, table: ServedTable) -> dg.SensorResult | dg.SkipReason:
    """Request a comparison when vectors were written since the last one."""
    try:
        with Migration.looked_at(table.settings()) as migration:
            found = written_since(migration, read_kept(int, context.cursor))
    except BgePipelineError as error:
        return dg.SkipReason(table.worded(str(error)))
    if found is None:
        return dg.SkipReason("the dimensions of the column that search reads keep vectors of another model out")
    alarm = run_history.failed_check(context.instance, table.key(SWAPPED), "only_new_vectors")
    if alarm is not None:
        context.log.error(alarm)
    rows, now = found
    if not rows:
        return dg.SkipReason(f"no vector was written since the last look; {alarm or 'none of the old model was seen'}")
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=str(now))


@per_table(
    lambda table: dg.sensor(
        name=table.called("watch_status"),
        job=status_job.of(table),
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Asks the check migration_status of swapped_index when the phase, the columns, the database, the table or the model "
            "has changed, whoever changed it; and where rows were written, once an hour."
        ),
    )
)
def watch_status(context: dg.SensorEvaluationContext, table: ServedTable) -> dg.SensorResult | dg.SkipReason:
    """Request a look at the table when something has changed."""
    of_job = dg.RunsFilter(job_name=table.called("status_job"), statuses=run_history.UNFINISHED)
    if under_way := context.instance.get_run_ids(of_job, limit=1):
        return dg.SkipReason(f"{of_job.job_name} is queued or under way in run {under_way[0][:8]}")
    try:
        settings = table.settings()
        with Migration.looked_at(settings) as migration:
            cursor, is_due = seen_now(migration, context.cursor)
    except BgePipelineError as error:
        return dg.SkipReason(table.worded(str(error)))
    if not is_due:
        failed = run_history.consecutive_failures(context.instance, table.called("status_job"))
        if not failed:
            return dg.SkipReason("nothing that migration_status tells has changed since the last look")
        policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
        left = (failed[-1].failed_at or 0.0) + policy.pause_seconds(len(failed)) - time.time()
        if left > 0:
            return dg.SkipReason(f"{of_job.job_name} did not succeed {len(failed)} times, next try in {left:.0f} s")
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=cursor)


def _left_alone(decisions: Mapping[str, Decision], found: run_history.Unmaterialized, total: int) -> str:
    unmaterialized = len(found.failed) + found.unfinished
    # What failed before the partitions were of this column is not decided about.
    if not decisions and not found.unfinished:
        return f"none of {total} partitions has failed"
    # What needs a person comes first.
    ordered = sorted(decisions.items(), key=lambda item: not isinstance(item[1], GiveUp))
    lines = [
        f"{'gave up on ' if isinstance(choice, GiveUp) else ''}{key}: {choice.reason}"
        for key, choice in ordered[:_LISTED]
        if not isinstance(choice, Rerun)
    ]
    if found.unfinished:
        lines.append(f"{found.unfinished:,} {'is' if found.unfinished == 1 else 'are'} queued or under way")
    more = f"; and {len(found.failed) - _LISTED:,} more" if len(found.failed) > _LISTED else ""
    return f"{unmaterialized} of {total} partitions are not materialized by their last run: {'; '.join(lines)}{more}"


SENSORS: list[PerTable[dg.SensorDefinition]] = [
    rerun_failed_partitions,
    embed_new_rows,
    notice_old_vectors,
    watch_status,
]
