"""Sensors that alarm a person: a backfill that stands still, one a table, and runs that failed, one for all of them."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import dagster as dg

from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration import run_history
from bge_pipeline.orchestration.cursors import read_kept
from bge_pipeline.orchestration.jobs import JOBS
from bge_pipeline.orchestration.movement_check import evaluate_movement
from bge_pipeline.orchestration.names import BACKFILLED
from bge_pipeline.orchestration.partitions import PARTITION_TAG, targeted_keys
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.rerun_policy import GiveUp, RerunPolicy
from bge_pipeline.orchestration.run_history import WILL_RETRY_TAG
from bge_pipeline.orchestration.served import THE_TABLE, ServedTable, served_tables
from bge_pipeline.orchestration.slack import tell_slack, why_silent
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.movement import read_movement
from bge_pipeline.settings import DagsterSettings

_INTERVAL_SECONDS = 60
_QUIET_SECONDS = 600.0
"""After a message about failed runs: ten thousand partitions that fail for one reason are one alarm."""
_FAILURES_PER_TICK = 500
"""Failed runs that one tick of tell_failures takes in; the next goes on behind them."""
_TOLD = "failures_told"


@per_table(
    lambda table: dg.sensor(
        name=table.called("watch_movement"),
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Answers the check `moving` of backfilled_embeddings when the backfill begins to stand still, and when it moves "
            "again; tells Slack where SLACK_TOKEN and SLACK_CHANNEL are set."
        ),
    )
)
def watch_movement(context: dg.SensorEvaluationContext, table: ServedTable) -> dg.SensorResult | dg.SkipReason:
    """Answer the check at first, and when a standstill begins or ends.

    A row that comes to a table where nothing was written for long is no standstill before it has waited for as long itself.
    """
    kept = _Watched.of(context.cursor)
    try:
        settings = table.settings()
        with Migration.looked_at(settings) as migration:
            found = read_movement(migration)
    except BgePipelineError as error:
        return dg.SkipReason(table.worded(str(error)))
    if found.still_seconds is None:
        return dg.SkipReason(str(found))
    now = time.time()
    waiting_since = (kept.waiting_since or now) if found.stands_still else None
    if waiting_since is not None and found.came_lately and now - waiting_since < found.limit_seconds:
        context.update_cursor(replace(kept, waiting_since=waiting_since).as_cursor())
        return dg.SkipReason(f"rows were first seen to wait {now - waiting_since:.0f} s ago: {found}")
    said = "still" if found.stands_still else "moving"
    is_news = said != kept.said
    prevented = None
    if (is_news and (found.stands_still or kept.said is not None)) or kept.is_untold:
        told = str(found) if found.stands_still else f"it moves again: {found}"
        prevented = tell_slack(settings, told, f"/assets/{'/'.join(table.key(BACKFILLED).path)}?view=checks")
        if prevented is not None:
            context.log.info("not told to Slack: %s", prevented)
        (context.log.error if found.stands_still else context.log.info)(told)
    watched = _Watched(said, waiting_since, is_untold=prevented is not None and why_silent(settings) is None)
    if not is_news:
        context.update_cursor(watched.as_cursor())
        return dg.SkipReason(str(found))
    return dg.SensorResult(asset_events=[evaluate_movement(table, found)], cursor=watched.as_cursor())


@dataclass(frozen=True)
class _Watched:
    """What `watch_movement` knows from one tick to the next.

    Attributes:
        said: the check's last answer, `still` or `moving`; None before the first.
        waiting_since: when rows were first seen to wait where nothing moves, in seconds since the epoch.
        is_untold: whether Slack did not take the last message.
    """

    said: str | None = None
    waiting_since: float | None = None
    is_untold: bool = False

    @classmethod
    def of(cls, cursor: str | None) -> "_Watched":
        """From a cursor; that of an earlier version is the answer alone."""
        if cursor in ("still", "moving"):
            return cls(cursor)
        return read_kept(cls, cursor) or cls()

    def as_cursor(self) -> str:
        return json.dumps(asdict(self))


@dg.sensor(
    name="tell_failures",
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Tells Slack of a run that failed, where SLACK_TOKEN and SLACK_CHANNEL are set: of a partition after its last attempt, "
        "of other runs unless Dagster starts them again; at most one message in ten minutes and table, which counts the others."
    ),
)
def tell_failures(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Tell the channel of each table of the runs that failed since the last tick, or count them.

    No run failure sensor of Dagster's, which ends its tick at the first run that it does not tell of, and is shown no run of
    `dagster job execute`.
    """
    try:
        tables = served_tables()
    except BgePipelineError as error:
        return dg.SkipReason(str(error))
    behind, failed = _failed_since(context.instance, context.cursor)
    by_table: dict[ServedTable | None, list[dg.DagsterRun]] = {table: [] for table in tables}
    if THE_TABLE not in tables:
        by_table[None] = []  # what was counted of tables that are served no more
    for run in failed:
        table = _table_of(run, tables)
        if _is_of_this_location(context, run, table):
            by_table.setdefault(table, []).append(run)
    said = [_tell_of_table(context, table, runs) for table, runs in by_table.items()]
    context.update_cursor(str(behind))
    return dg.SkipReason("; ".join(filter(None, said)) or "no run has failed since the last look")


def _failed_since(instance: dg.DagsterInstance, cursor: str | None) -> tuple[int, list[dg.DagsterRun]]:
    """How far the records were read, as a storage id, and the runs that failed behind the cursor, in order; none at first."""
    kept: Any = read_kept(int, cursor)
    if kept is None:
        # That of an earlier version, by Dagster's run failure sensor.
        kept = (read_kept(dict[str, Any], cursor) or {}).get("record_id")
    if not isinstance(kept, int):
        last = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
        return (last[0].storage_id if last else 0), []
    new = dg.RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_storage_id=kept)
    records = instance.fetch_run_status_changes(new, limit=_FAILURES_PER_TICK, ascending=True).records
    runs = run_history.runs_by_id(instance, {record.run_id for record in records})
    found = [runs[record.run_id] for record in records if record.run_id in runs]
    return (records[-1].storage_id if records else kept), found


def _is_of_this_location(context: dg.SensorEvaluationContext, run: dg.DagsterRun, table: ServedTable | None) -> bool:
    """Whether this code location launched it; one that `dagster job execute` ran names none, and is known by its table."""
    if run.remote_job_origin is None:
        return table is not None
    repository, location = run.remote_job_origin.repository_origin, context.code_location_origin
    return (
        location is not None
        and repository.code_location_origin.location_name == location.location_name
        and repository.repository_name == context.repository_name
    )


def _table_of(run: dg.DagsterRun, tables: Sequence[ServedTable]) -> ServedTable | None:
    """The table that a run is about; None where the code location does not serve it any more."""
    keys = [*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())]
    for table in tables:
        is_own = any(table.key(key.path[-1]) == key for key in keys)
        if is_own or any(job.of(table).name == run.job_name for job in JOBS):
            return table
    return None


@dataclass(frozen=True)
class _Told:
    """What `tell_failures` keeps of a table.

    Attributes:
        at: when its channel was told last, in seconds since the epoch.
        others: runs that failed since, or that Slack did not take.
        last: id of the last of them.
    """

    at: float = 0.0
    others: int = 0
    last: str | None = None


def _tell_of_table(
    context: dg.SensorEvaluationContext, table: ServedTable | None, failed: Sequence[dg.DagsterRun]
) -> str | None:
    """Tell its channel of these runs and of those that were counted before, in one message; says what came of it."""
    instance = context.instance
    try:
        settings = (table or THE_TABLE).settings()
    except BgePipelineError as error:
        return str(error) if failed else None
    if silent := why_silent(settings):
        return silent if failed else None
    of_table = f" of {table.name}" if table is not None and table.name else ""
    again = tried_again(instance, table, settings, failed)
    untold = [run for run in failed if run.run_id not in again]
    key = (table or THE_TABLE).kept_as(_TOLD)
    kept = read_kept(_Told, instance.daemon_cursor_storage.get_cursor_values({key}).get(key)) or _Told()
    now = replace(kept, others=kept.others + len(untold), last=untold[-1].run_id if untold else kept.last)
    if not now.others:
        return f"{len(failed):,} failed runs{of_table} are tried again" if failed else None
    left = kept.at + _QUIET_SECONDS - time.time()
    if left > 0:
        said = f"{now.others:,} failed runs{of_table} are counted, and told after {left:.0f} s"
    elif prevented := tell_slack(settings, _told_failures(instance, now), f"/runs/{now.last}" if now.last else "/runs"):
        said = prevented
    else:
        said, now = f"told of {now.others:,} failed runs{of_table}", _Told(at=time.time())
    if now != kept:
        instance.daemon_cursor_storage.set_cursor_values({key: json.dumps(asdict(now))})
    return said


def tried_again(
    instance: dg.DagsterInstance, table: ServedTable | None, settings: DagsterSettings, runs: Sequence[dg.DagsterRun]
) -> set[str]:
    """Ids of the runs that Dagster, or the sensor rerun_failed_partitions of their table, starts again, be it in part."""
    # Dagster cannot start again what it did not launch, though it says so of that too.
    found = {run.run_id for run in runs if run.tags.get(WILL_RETRY_TAG) == "true" and run.remote_job_origin is not None}
    if table is None:
        return found
    keys_of: dict[str, list[str]] = {}
    for run in runs:
        with suppress(BgePipelineError):  # its partitions are no more
            if run_history.is_about_backfill(run, table):
                keys_of[run.run_id] = targeted_keys(instance, table, run.tags)
    policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
    attempts = run_history.attempts_at(instance, table, sorted({key for keys in keys_of.values() for key in keys}))
    claimed = run_history.claimed_by_backfills(instance, table, attempts)
    now = time.time()
    again = {
        key
        for key, own in attempts.items()
        if not isinstance(policy.decide(key, own, now, is_claimed=key in claimed), GiveUp)
    }
    return found | {run_id for run_id, keys in keys_of.items() if again.intersection(keys)}


def _told_failures(instance: dg.DagsterInstance, untold: _Told) -> str:
    """The last of them with its reason, and how many others there are; the number alone where its records were deleted."""
    run = instance.get_run_by_id(untold.last) if untold.last is not None else None
    if run is None:
        return f"{untold.others:,} runs have failed since the last message."
    others = untold.others - 1
    more = f"\n{others:,} other runs have failed since the last message." if others else ""
    partition = f", partition {run.tags[PARTITION_TAG]}," if PARTITION_TAG in run.tags else ""
    return f"{run.job_name}{partition} failed in run {run.run_id[:8]}: {run_history.failure_of(instance, run)}{more}"


ALARM_SENSORS = [watch_movement]
