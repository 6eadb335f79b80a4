"""The graph says where a migration stands: red after a rollback, amber where search misses rows, whoever caused it."""

from collections.abc import Callable

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.sensors import watch_status
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.rollback import rollback
from bge_pipeline_tests.orchestration.conftest import UNREADABLE, Runner, insert_segment, report
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
CHECK = dg.AssetCheckKey(dg.AssetKey("swapped_index"), "migration_status")

Look = Callable[[], dg.AssetCheckEvaluation]


@pytest.fixture
def latest(instance: dg.DagsterInstance) -> Look:
    """What the graph shows now."""

    def look() -> dg.AssetCheckEvaluation:
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([CHECK])[CHECK]
        assert record.event is not None
        event = record.event.dagster_event
        assert event is not None
        return event.asset_check_evaluation_data

    return look


@pytest.fixture
def asked(run: Runner, latest: Look) -> Look:
    """What the check answers when it is asked now."""

    def ask() -> dg.AssetCheckEvaluation:
        assert run("status_job").success
        return latest()

    return ask


def test_a_swap_is_green_and_tells_what_search_reads(run: Runner, latest: Look):
    run.migrate()

    found = latest()

    assert found.passed
    told = {name: found.metadata[name].value for name in ("phase", "model", "dimensions", "not_searchable", "table")}
    assert (
        told
        == {
            "phase": "swapped",
            "model": "hashing",
            "dimensions": 384,
            "not_searchable": 0,
            "table": '"public"."segments"',
        }
        or told["table"] == "public.segments"
    )
    assert str(found.metadata["database"].value).startswith("bge_test_")
    assert found.metadata["index"].value != "none"
    assert "bge-pipeline retire" in str(found.metadata["next_step"].value)


def test_a_rollback_is_red_at_once_and_leaves_the_report_out_of_date(
    database: Database, instance: dg.DagsterInstance, run: Runner, latest: Look
):
    run.migrate()
    assert run("report_job").success
    assert stale_status(instance, "benchmark_report") == StaleStatus.FRESH
    insert_segment(database, 1_000)
    assert run("embed_pending_job").success

    assert run.rollback().success

    found = latest()
    assert (found.passed, found.severity) == (False, ERROR)
    assert "search reads the old vectors again" in str(found.description)
    assert "search cannot find 1 rows" in str(found.description)
    assert (found.metadata["phase"].value, found.metadata["dimensions"].value) == ("rolled back", 1_536)
    assert stale_status(instance, "benchmark_report") == StaleStatus.STALE


def stale_status(instance: dg.DagsterInstance, asset: str) -> StaleStatus:
    from dagster._core.loader import LoadingContextForTest

    context = LoadingContextForTest(instance)
    return CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), context).get_status(dg.AssetKey(asset))


def test_retire_is_green_and_says_so(run: Runner, latest: Look):
    run.migrate()

    assert run.retire().success

    assert latest().passed
    assert latest().metadata["phase"].value == "retired"


def test_rows_that_search_cannot_find_are_amber(database: Database, run: Runner, asked: Look):
    run.migrate()
    insert_segment(database, 1_000)

    found = asked()

    assert (found.passed, found.severity) == (False, WARN)
    assert found.metadata["not_searchable"].value == 1


def test_another_model_in_the_settings_is_red(run: Runner, asked: Look, monkeypatch: pytest.MonkeyPatch):
    run.migrate()
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")

    found = asked()

    assert (found.passed, found.severity) == (False, ERROR)
    assert "and the settings name hashing" in str(found.description)


class TestWatchStatus:
    """The sensor looks when something has changed, by whichever road, and counts rows at no other time."""

    @pytest.fixture
    def tick(self, instance: dg.DagsterInstance) -> Callable[[str | None], dg.SensorResult | dg.SkipReason]:
        def evaluate(cursor: str | None) -> dg.SensorResult | dg.SkipReason:
            with dg.build_sensor_context(instance=instance, definitions=defs, cursor=cursor) as context:
                found = watch_status.of(THE_TABLE)(context)
            assert isinstance(found, dg.SensorResult | dg.SkipReason)
            return found

        return evaluate

    def test_a_rollback_at_the_terminal_is_noticed(
        self,
        migration: Migration,
        run: Runner,
        tick: Callable[[str | None], dg.SensorResult | dg.SkipReason],
    ):
        run.migrate()
        first = tick(None)
        assert isinstance(first, dg.SensorResult)
        assert len(first.run_requests or ()) == 1
        assert isinstance(tick(first.cursor), dg.SkipReason)

        rollback(migration)

        second = tick(first.cursor)
        assert isinstance(second, dg.SensorResult)
        assert second.cursor != first.cursor
        assert isinstance(tick(second.cursor), dg.SkipReason)

    def test_a_look_that_failed_is_asked_for_again_and_later_each_time(
        self,
        instance: dg.DagsterInstance,
        tick: Callable[[str | None], dg.SensorResult | dg.SkipReason],
        monkeypatch: pytest.MonkeyPatch,
    ):
        first = tick(None)
        assert isinstance(first, dg.SensorResult)
        for end in (instance.report_run_failed, instance.report_run_canceled):
            end(instance.create_run_for_job(defs.resolve_job_def("status_job"), status=dg.DagsterRunStatus.STARTED))

        again = tick(first.cursor)
        assert isinstance(again, dg.SensorResult)
        assert len(again.run_requests or ()) == 1
        assert again.cursor == first.cursor
        monkeypatch.setenv("RETRY_BACKOFF_SECONDS", "600")
        assert "status_job did not succeed 2 times, next try in 1" in str(tick(first.cursor))

        looked = instance.create_run_for_job(defs.resolve_job_def("status_job"))
        report(instance, looked, dg.DagsterEventType.RUN_SUCCESS)
        assert isinstance(tick(first.cursor), dg.SkipReason)
        assert "has changed since the last look" in str(tick(first.cursor))

    @pytest.mark.parametrize("cursor", UNREADABLE)
    def test_a_cursor_that_cannot_be_read_counts_as_none(
        self, tick: Callable[[str | None], dg.SensorResult | dg.SkipReason], cursor: str
    ):
        assert isinstance(tick(cursor), dg.SensorResult)

    def test_a_table_that_is_gone_is_said_and_no_failure(
        self, database: Database, tick: Callable[[str | None], dg.SensorResult | dg.SkipReason]
    ):
        execute(database, "ALTER TABLE segments RENAME TO elsewhere")

        assert isinstance(tick(None), dg.SkipReason)
