"""What Dagster's books say: runs of each partition, runs and backfills under way. The one place that reads its event log."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from bge_pipeline.orchestration.filled_column import KeptColumn, filled_column, keep_column, kept_column
from bge_pipeline.orchestration.names import (
    BACKFILL_JOB,
    BACKFILLED,
    BUDGET_SPENT_TAG,
    EMBED_PENDING_JOB,
    KEEP_OLD_CURRENT_JOB,
    LEFT_PENDING_TAG,
    SCHEMA,
    WITHOUT_OLD_MODEL_TAG,
)
from bge_pipeline.orchestration.own_tags import own_tag
from bge_pipeline.orchestration.partitions import known_keys, targeted_keys
from bge_pipeline.orchestration.progress import Overall
from bge_pipeline.orchestration.rerun_policy import Attempt
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.state import MigrationState

_WAITING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING]
_AT_WORK = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
UNFINISHED = [*_WAITING, *_AT_WORK]
WILL_RETRY_TAG = "dagster/will_retry"
_RETRIED_BY_TAG = "dagster/auto_retry_run_id"
_BACKFILL_TAG = "dagster/backfill"
_RUNS_PER_QUERY = 500
_RUNS_PER_LOOK = 50
_OLD_MODEL_PAUSE_SECONDS = 3_600.0
_LONGEST_REASON = 1_000


@dataclass(frozen=True)
class Unmaterialized:
    """Partitions whose latest run has not materialized them.

    Attributes:
        failed: those whose run is over, in order.
        unfinished: how many have one that is queued or under way.
    """

    failed: Sequence[str]
    unfinished: int


def unmaterialized(instance: dg.DagsterInstance, table: ServedTable) -> Unmaterialized:
    """Which partitions their latest run has not materialized; asks for ids alone, as thousands of runs may be queued."""
    known = set(known_keys(instance, table))
    latest = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
        table.key(BACKFILLED)
    )
    last_runs = {key: run_id for key, (run_id, _) in latest.items() if key in known}
    unfinished = set(instance.get_run_ids(dg.RunsFilter(statuses=UNFINISHED))) if last_runs else set()
    failed = sorted(key for key, run_id in last_runs.items() if run_id not in unfinished)
    return Unmaterialized(failed, len(last_runs) - len(failed))


def attempts_at(instance: dg.DagsterInstance, table: ServedTable, keys: Sequence[str]) -> dict[str, list[Attempt]]:
    """For each of these partitions, its runs since it was last materialized, oldest first.

    A run of a range counts for each of its partitions, and so does a run that Dagster's own retries started. One that was over
    before the partitions were of the column that they are of does not count.
    """
    if not keys:
        return {}
    asset = table.key(BACKFILLED)
    materialized = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, set(keys)
    )
    planned = instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, asset, asset_partitions=list(keys)),
        ascending=True,
    )
    run_ids: dict[str, dict[str, None]] = defaultdict(dict)
    for record in planned:
        if record.partition_key is not None and record.storage_id > materialized.get(record.partition_key, 0):
            run_ids[record.partition_key][record.run_id] = None
    runs = _run_records(instance, {run_id for ids in run_ids.values() for run_id in ids})
    kept = kept_column(instance, table)
    begun_at = kept.at if kept is not None else 0.0
    attempts = {
        run_id: attempt
        for run_id, attempt in ((run_id, _attempt(record)) for run_id, record in runs.items())
        if attempt.failed_at is None or attempt.failed_at >= begun_at
    }
    found = {key: [attempts[run_id] for run_id in ids if run_id in attempts] for key, ids in sorted(run_ids.items())}
    return {key: own for key, own in found.items() if own}


def never_materialized(instance: dg.DagsterInstance, table: ServedTable) -> list[str]:
    """Partitions that no run has materialized since they are of the column that they are of."""
    kept = kept_column(instance, table)
    since = kept.since if kept is not None else _last_expansion(instance, table)
    materialized = _latest_materializations(instance, table)
    return [key for key in known_keys(instance, table) if materialized.get(key, 0) <= since]


def never_begun(instance: dg.DagsterInstance, table: ServedTable, keys: Sequence[str]) -> list[str]:
    """Of these partitions, those that no run has materialized, or was to, since they are of the column that they are of."""
    missing = set(never_materialized(instance, table)).intersection(keys) if keys else set()
    return sorted(missing - attempts_at(instance, table, sorted(missing)).keys())


def is_of_another_column(instance: dg.DagsterInstance, table: ServedTable, state: MigrationState) -> bool:
    """Whether the partitions, and what is materialized of them, are of another column than the one that waits for its swap."""
    kept = kept_column(instance, table)
    return state.new is not None and kept is not None and not kept.column.is_same_as(filled_column(state))


def take_up(instance: dg.DagsterInstance, table: ServedTable, state: MigrationState, *, anew: bool = False) -> None:
    """Note that the partitions are of the column that is filled now.

    Args:
        instance: whose partitions.
        table: the table.
        state: where it stands.
        anew: nothing of that column is materialized yet. Otherwise what is materialized stays so, and a column that waits for its
            swap is noted only where none was: in an instance of an earlier version.
    """
    kept, column = kept_column(instance, table), filled_column(state)
    if anew:
        since, at = max(_latest_materializations(instance, table).values(), default=0), time.time()
    elif kept is None:
        if not known_keys(instance, table):
            return
        since, at = _last_expansion(instance, table), 0.0
    elif state.phase == "legacy" or kept.column == column or is_of_another_column(instance, table, state):
        return
    else:
        since, at = kept.since, kept.at
    keep_column(instance, table, KeptColumn(column, since, at))


def how_far(
    instance: dg.DagsterInstance, table: ServedTable, keys: Sequence[str], number: int, partition_rows: int
) -> Overall:
    """How far the backfill is as the partition of that place among the `keys` of a run begins.

    A partition that is to come counts as `partition_rows`. The ones before it in the run are done, though not yet in the books.
    """
    missing = set(never_materialized(instance, table)) - set(keys[:number]) | {keys[number]}
    partitions = len(known_keys(instance, table))
    return Overall(partitions - len(missing), partitions, (len(missing) - 1) * partition_rows)


def unfinished_run(instance: dg.DagsterInstance, table: ServedTable, job_names: Iterable[str]) -> dg.DagsterRun | None:
    """A run of one of these jobs that is queued or under way, or another that expands or backfills; None without one."""
    for name in job_names:
        if runs := instance.get_runs(dg.RunsFilter(job_name=table.called(name), statuses=UNFINISHED), limit=1):
            return runs[0]
    cursor: str | None = None
    while runs := instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), cursor=cursor, limit=_RUNS_PER_LOOK):
        if found := next((run for run in runs if is_about_backfill(run, table) or _is_about_schema(run, table)), None):
            return found
        cursor = runs[-1].run_id
    return None


def _is_about_schema(run: dg.DagsterRun, table: ServedTable) -> bool:
    return table.key(SCHEMA) in (run.asset_selection or ())


def is_about_backfill(run: dg.DagsterRun, table: ServedTable) -> bool:
    """Whether it is a run of the table's partitions, whichever job and however many of them."""
    return run.job_name == table.called(BACKFILL_JOB) or table.key(BACKFILLED) in (run.asset_selection or ())


def others_are_to_come(instance: dg.DagsterInstance, table: ServedTable, run: dg.DagsterRun) -> bool:
    """Whether partitions other than those of this run have yet to be embedded, or embedded again by its Dagster backfill.

    Always false for a run of the whole table.
    """
    own = set(targeted_keys(instance, table, run.tags))
    if not own:
        return False
    if set(never_materialized(instance, table)) - own:
        return True
    if _BACKFILL_TAG not in run.tags:
        return False
    of_backfill = {_BACKFILL_TAG: run.tags[_BACKFILL_TAG]}
    # The question that nearly always settles it first, since the last one reads every run of the backfill.
    if instance.get_run_ids(dg.RunsFilter(tags=of_backfill, statuses=_WAITING), limit=1):
        return True
    at_work = instance.get_runs(filters=dg.RunsFilter(tags=of_backfill, statuses=_AT_WORK))
    if not all(_has_embedded(instance, table, other) for other in at_work if other.run_id != run.run_id):
        return True
    backfill = instance.get_backfill(run.tags[_BACKFILL_TAG])
    runs = instance.get_runs(filters=dg.RunsFilter(tags=of_backfill))
    begun = {key for other in runs for key in targeted_keys(instance, table, other.tags)}
    return backfill is not None and bool(_targets(backfill, table) - begun)


def backfills_under_way(instance: dg.DagsterInstance, table: ServedTable) -> Sequence[Any]:
    """Dagster backfills of the table that have not ended.

    Dagster has no public name for the filter of its backfills.
    """
    from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionsFilter, BulkActionStatus

    running = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    under_way = instance.get_backfills(BulkActionsFilter(statuses=running))
    return [backfill for backfill in under_way if _targets(backfill, table)]


def claimed_by_backfills(
    instance: dg.DagsterInstance, table: ServedTable, attempts: Mapping[str, Sequence[Attempt]]
) -> set[str]:
    """Of these partitions, those that a Dagster backfill under way has yet to run.

    A backfill does not repeat a partition that failed in it, so one that it has run, be it before another run, is not claimed.
    """
    claimed: set[str] = set()
    for backfill in backfills_under_way(instance, table) if attempts else ():
        of_backfill = dg.RunsFilter(tags={_BACKFILL_TAG: backfill.backfill_id})
        own_runs = set(instance.get_run_ids(of_backfill))
        targets = _targets(backfill, table)
        claimed |= {
            key
            for key, runs in attempts.items()
            if key in targets and own_runs.isdisjoint(attempt.run_id for attempt in runs)
        }
    return claimed


def consecutive_failures(instance: dg.DagsterInstance, job_name: str) -> list[Attempt]:
    """The runs of a job, oldest first, since the last that succeeded and did not leave every pending row as it was."""
    failed = []
    for record in instance.get_run_records(filters=dg.RunsFilter(job_name=job_name), limit=20):
        run = record.dagster_run
        if run.status == dg.DagsterRunStatus.SUCCESS and own_tag(run, LEFT_PENDING_TAG) is None:
            break
        failed.append(_attempt(record))
    return failed[::-1]


def lately_without_old_model(instance: dg.DagsterInstance, table: ServedTable) -> bool:
    """Whether the last run that looked for the old model, in the last hour, found none; the next may be on another host."""
    told = [
        record
        for job in (EMBED_PENDING_JOB, KEEP_OLD_CURRENT_JOB)
        for record in instance.get_run_records(dg.RunsFilter(job_name=table.called(job)), limit=_RUNS_PER_LOOK)
        if record.dagster_run.is_success or own_tag(record.dagster_run, WITHOUT_OLD_MODEL_TAG) is not None
    ]
    if not told:
        return False
    last = max(told, key=lambda record: record.create_timestamp)
    if own_tag(last.dagster_run, WITHOUT_OLD_MODEL_TAG) is None:
        return False
    return last.end_time is None or time.time() - last.end_time < _OLD_MODEL_PAUSE_SECONDS


def failed_check(instance: dg.DagsterInstance, asset: dg.AssetKey, check: str) -> str | None:
    """What the last evaluation of a check says; None where it passed, and where there was none."""
    key = dg.AssetCheckKey(asset, check)
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    event = record.event.dagster_event if record is not None and record.event is not None else None
    if event is None or event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        return None
    evaluation = event.asset_check_evaluation_data
    return None if evaluation.passed else evaluation.description


def runs_by_id(instance: dg.DagsterInstance, run_ids: set[str]) -> dict[str, dg.DagsterRun]:
    """These runs, without those whose records were deleted."""
    return {run_id: record.dagster_run for run_id, record in _run_records(instance, run_ids).items()}


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Why a run failed: what its last failed step says, or else what is said of the run."""
    failures = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run.run_id, of_type=failures).records
    events = [event for record in records if (event := record.event_log_entry.dagster_event) is not None]
    of_steps = [event.step_failure_data.user_failure_data for event in events if event.is_step_failure]
    described = of_steps[-1].description if of_steps and of_steps[-1] is not None else None
    of_run = [event.message for event in events if not event.is_step_failure]
    return (described or (of_run or [None])[-1] or "no reason was given")[:_LONGEST_REASON]


def _attempt(record: dg.RunRecord) -> Attempt:
    run = record.dagster_run
    left_pending = own_tag(run, LEFT_PENDING_TAG)
    return Attempt(
        run_id=run.run_id,
        failed_at=(record.end_time or record.update_timestamp.timestamp()) if run.is_finished else None,
        was_cancelled=run.status == dg.DagsterRunStatus.CANCELED,
        # Once the retry is there, it is an attempt of its own.
        is_retried_by_dagster=run.tags.get(WILL_RETRY_TAG) == "true" and _RETRIED_BY_TAG not in run.tags,
        left_pending=int(left_pending) if run.is_success and left_pending is not None else None,
        has_spent_budget=own_tag(run, BUDGET_SPENT_TAG) is not None,
    )


def _run_records(instance: dg.DagsterInstance, run_ids: set[str]) -> dict[str, dg.RunRecord]:
    ordered = sorted(run_ids)
    chunks = (ordered[first : first + _RUNS_PER_QUERY] for first in range(0, len(ordered), _RUNS_PER_QUERY))
    return {
        record.dagster_run.run_id: record
        for chunk in chunks
        for record in instance.get_run_records(filters=dg.RunsFilter(run_ids=chunk))
    }


def _latest_materializations(instance: dg.DagsterInstance, table: ServedTable) -> Mapping[str, int]:
    """Storage ids, by partition."""
    return instance.event_log_storage.get_latest_storage_id_by_partition(
        table.key(BACKFILLED), dg.DagsterEventType.ASSET_MATERIALIZATION
    )


def _last_expansion(instance: dg.DagsterInstance, table: ServedTable) -> int:
    """Storage id of the last materialization of the schema that added the column; 0 without one."""
    for record in instance.fetch_materializations(table.key(SCHEMA), limit=50).records:
        materialization = record.asset_materialization
        if materialization is not None and materialization.metadata["added"].value is True:
            return record.storage_id
    return 0


def _has_embedded(instance: dg.DagsterInstance, table: ServedTable, run: dg.DagsterRun) -> bool:
    """Whether a run that is not over has materialized every partition that it is about, and only checks them now."""
    found = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return {record.partition_key for record in found.records} >= set(targeted_keys(instance, table, run.tags))


def _targets(backfill: Any, table: ServedTable) -> set[str]:
    """The partitions that a Dagster backfill is to run."""
    if backfill.asset_backfill_data is None:
        return set(backfill.partition_names or ()) if backfill.job_name == table.called(BACKFILL_JOB) else set()
    asset, subset = table.key(BACKFILLED), backfill.asset_backfill_data.target_subset
    return set(subset.get_partitions_subset(asset).get_partition_keys()) if asset in subset.asset_keys else set()
