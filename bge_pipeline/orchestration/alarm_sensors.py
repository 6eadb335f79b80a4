"""Sensors that alarm a person: a backfill that stands still, one a table, and a run that failed, one for all of them."""

import json
import time
from dataclasses import asdict, dataclass, replace

import dagster as dg

from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration import run_history
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
_TOLD = "bge_pipeline/failures_told"
_LONGEST_REASON = 1_000


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
        if cursor is None:
            return cls()
        return cls(**json.loads(cursor)) if cursor.startswith("{") else cls(cursor)

    def as_cursor(self) -> str:
        return json.dumps(asdict(self))


@dg.run_failure_sensor(
    name="tell_failures",
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Tells Slack of a run that failed, where SLACK_TOKEN and SLACK_CHANNEL are set: of a partition after its last attempt, "
        "of other runs unless Dagster starts them again; at most one message in ten minutes, which counts the others."
    ),
)
def tell_failures(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Tell of one failed run, or count it."""
    run = context.dagster_run
    try:
        table = _table_of(run)
        settings = (table or THE_TABLE).settings()
    except BgePipelineError as error:
        return dg.SkipReason(str(error))
    if silent := why_silent(settings):
        return dg.SkipReason(silent)
    if is_tried_again(context.instance, table, settings, run):
        return dg.SkipReason(f"run {run.run_id[:8]} is tried again")
    told = json.loads(context.instance.daemon_cursor_storage.get_cursor_values({_TOLD}).get(_TOLD, "{}"))
    left = told.get("at", 0.0) + _QUIET_SECONDS - time.time()
    if left > 0:
        _keep(context.instance, told | {"others": told.get("others", 0) + 1})
        return dg.SkipReason(f"run {run.run_id[:8]} is counted, and told with the next failure after {left:.0f} s")
    prevented = tell_slack(settings, _told_failure(context, told.get("others", 0)), f"/runs/{run.run_id}")
    if prevented is not None:
        _keep(context.instance, told | {"others": told.get("others", 0) + 1})
        return dg.SkipReason(prevented)
    _keep(context.instance, {"at": time.time()})
    return None


def _table_of(run: dg.DagsterRun) -> ServedTable | None:
    """The table that a run is about; None where the code location does not serve it any more."""
    keys = [*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())]
    for table in served_tables():
        is_own = any(table.key(key.path[-1]) == key for key in keys)
        if is_own or any(job.of(table).name == run.job_name for job in JOBS):
            return table
    return None


def is_tried_again(
    instance: dg.DagsterInstance, table: ServedTable | None, settings: DagsterSettings, run: dg.DagsterRun
) -> bool:
    """Whether Dagster, or the sensor rerun_failed_partitions of its table, starts it again, or a part of its partitions."""
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return True
    if table is None or not run_history.is_about_backfill(run, table):
        return False
    try:
        keys = targeted_keys(instance, table, run.tags)
    except BgePipelineError:
        return False  # its partitions are no more
    policy = RerunPolicy(settings.max_partition_attempts, settings.retry_backoff_seconds)
    attempts = run_history.attempts_at(instance, table, keys)
    claimed = run_history.claimed_by_backfills(instance, table, attempts)
    now = time.time()
    return any(
        not isinstance(policy.decide(key, runs, now, is_claimed=key in claimed), GiveUp)
        for key, runs in attempts.items()
    )


def _told_failure(context: dg.RunFailureSensorContext, others: int) -> str:
    run, event = context.dagster_run, context.failure_event
    steps = context.get_step_failure_events()
    data = steps[-1].step_failure_data if steps else None
    described = data.user_failure_data.description if data is not None and data.user_failure_data is not None else None
    reason = (described or event.message or "no reason was given")[:_LONGEST_REASON]
    partition = f", partition {run.tags[PARTITION_TAG]}," if PARTITION_TAG in run.tags else ""
    more = f"\n{others:,} other runs have failed since the last message." if others else ""
    return f"{run.job_name}{partition} failed in run {run.run_id[:8]}: {reason}{more}"


def _keep(instance: dg.DagsterInstance, told: dict[str, float]) -> None:
    instance.daemon_cursor_storage.set_cursor_values({_TOLD: json.dumps(told)})


ALARM_SENSORS = [watch_movement]
