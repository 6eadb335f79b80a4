"""What alarms a person: a backfill that stands still, failed runs; told in the UI, and to a real server in Slack's place."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.heartbeat import Heartbeat
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration import alarm_sensors
from bge_pipeline.orchestration.alarm_sensors import is_tried_again, tell_failures, watch_movement
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.orchestration.slack import tell_slack, why_silent
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.movement import read_movement
from bge_pipeline.phases.pause import pause
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, insert_segment
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector

TOKEN = "xoxb-canary-4711"


class Slack:
    """A server that takes messages as Slack does, and keeps them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.tokens: list[str] = []
        self.answer = '{"ok": true, "ts": "1"}'
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                is_json = "json" in self.headers["Content-Type"]
                fields = json.loads(body) if is_json else {key: values[0] for key, values in parse_qs(body).items()}
                keeper.messages.append(fields | {"path": self.path})
                keeper.tokens.append(self.headers["Authorization"])
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(keeper.answer.encode())

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/api/"


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slack]:
    """A channel that is listened to, and the settings that name it."""
    pytest.importorskip("dagster_slack", reason="needs the extra `slack`")
    slack = Slack()
    threading.Thread(target=slack.server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SLACK_TOKEN", TOKEN)
    monkeypatch.setenv("SLACK_CHANNEL", "#search")
    monkeypatch.setenv("SLACK_API_URL", slack.url)
    monkeypatch.setenv("DAGSTER_URL", "http://127.0.0.1:3000")
    yield slack
    slack.server.shutdown()
    slack.server.server_close()


@pytest.fixture
def expanded(run: Runner) -> None:
    assert run("expand_job").success


def age_journal(database: Database, minutes: int) -> None:
    execute(database, f"UPDATE segments_embedding_journal SET at = at - interval '{minutes} minutes'")


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult | str:
    with dg.build_sensor_context(instance=instance, definitions=defs, cursor=cursor) as context:
        result = watch_movement.of(THE_TABLE)(context)
    return str(result.skip_message) if isinstance(result, dg.SkipReason) else result


class TestStandstill:
    def test_before_a_migration_there_is_nothing_to_stand_still(self, instance: dg.DagsterInstance):
        assert tick(instance) == 'no migration of "public"."segments" has begun, or this role may not read its journal'

    @pytest.mark.usefixtures("expanded")
    def test_it_is_told_once_in_the_check_and_once_to_slack(
        self, instance: dg.DagsterInstance, database: Database, slack: Slack, run: Runner
    ):
        first = tick(instance)
        assert isinstance(first, dg.SensorResult)
        assert [event.passed for event in first.asset_events] == [True]
        assert "the last vector or phase was" in str(tick(instance, cursor=first.cursor))
        assert slack.messages == []
        age_journal(database, 20)

        told = tick(instance, cursor=first.cursor)
        assert isinstance(told, dg.SensorResult)
        (evaluation,) = told.asset_events
        assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
        for words in (
            "300 rows wait",
            "20 min ago",
            "15 min (STANDSTILL_MINUTES)",
            "At work: nobody",
            "launch the backfill",
        ):
            assert words in evaluation.description
        (message,) = slack.messages
        assert message["channel"] == "#search"
        assert message["path"] == "/api/chat.postMessage"
        assert "stands still: 300 rows wait" in message["text"]
        assert "<http://127.0.0.1:3000/assets/backfilled_embeddings?view=checks|Dagster UI>" in message["text"]
        assert slack.tokens == [f"Bearer {TOKEN}"]

        instance.report_runless_asset_event(evaluation)
        assert "stands still" in str(tick(instance, cursor=told.cursor))
        assert len(slack.messages) == 1

        assert run.backfill().success
        over = tick(instance, cursor=told.cursor)
        assert isinstance(over, dg.SensorResult)
        assert [event.passed for event in over.asset_events] == [True]
        assert "it moves again" in slack.messages[-1]["text"]

    @pytest.mark.usefixtures("expanded")
    def test_a_row_that_comes_to_a_quiet_table_is_none_before_it_has_waited_itself(
        self, instance: dg.DagsterInstance, database: Database, run: Runner, slack: Slack
    ):
        assert run.backfill().success
        age_journal(database, 600)
        first = tick(instance)
        assert isinstance(first, dg.SensorResult)
        insert_segment(database, 1_000)

        with dg.build_sensor_context(instance=instance, definitions=defs, cursor=first.cursor) as context:
            waits = watch_movement.of(THE_TABLE)(context)
            assert "rows were first seen to wait 0 s ago" in str(waits)
            seen = json.loads(str(context.cursor))
        assert slack.messages == []

        told = tick(instance, cursor=json.dumps(seen | {"waiting_since": seen["waiting_since"] - 901}))
        assert isinstance(told, dg.SensorResult)
        assert "stands still: 1 rows wait" in slack.messages[0]["text"]

    @pytest.mark.usefixtures("expanded")
    def test_what_slack_did_not_take_is_told_at_the_next_tick(
        self, instance: dg.DagsterInstance, database: Database, slack: Slack
    ):
        age_journal(database, 20)
        taken, slack.answer = slack.answer, '{"ok": false, "error": "internal_error"}'
        untold = tick(instance)
        assert isinstance(untold, dg.SensorResult)
        slack.answer = taken
        slack.messages.clear()

        with dg.build_sensor_context(instance=instance, definitions=defs, cursor=untold.cursor) as context:
            assert isinstance(watch_movement.of(THE_TABLE)(context), dg.SkipReason), "the check has its answer"
            told = str(context.cursor)
        assert len(slack.messages) == 1
        tick(instance, cursor=told)
        assert len(slack.messages) == 1

    @pytest.mark.usefixtures("expanded")
    def test_a_process_that_lives_and_writes_nothing_is_a_standstill_with_its_reason(
        self, database: Database, migration: Migration
    ):
        with Heartbeat(database, migration.target, "1-100", "a model", BackfillTotals()) as heartbeat:
            heartbeat._moved -= 1_200
            heartbeat.held = lambda: "standby 'b' lags 900 MB behind"
            heartbeat._beat()
            execute(database, "UPDATE segments_embedding_journal SET at = at - interval '1 hour' WHERE act <> 'worker'")
            found = read_movement(migration)
        assert found.stands_still
        assert "held back: standby 'b' lags 900 MB behind" in str(found)
        assert "see to what holds it back" in str(found)

    @pytest.mark.usefixtures("expanded")
    def test_a_pause_is_no_standstill(self, database: Database, migration: Migration):
        pause(migration, reason="Black Friday")
        age_journal(database, 60)
        found = read_movement(migration)
        assert not found.stands_still
        assert "Black Friday" in str(found)

    @pytest.mark.usefixtures("expanded")
    def test_nothing_pending_is_no_standstill(self, database: Database, migration: Migration, run: Runner):
        assert run.backfill().success
        age_journal(database, 600)
        assert not read_movement(migration).stands_still

    @pytest.mark.usefixtures("expanded")
    def test_the_check_answers_in_a_run_too(self, instance: dg.DagsterInstance, database: Database):
        age_journal(database, 20)
        job = dg.define_asset_job(
            "ask", selection=dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("backfilled_embeddings"), "moving"))
        )
        asked = (
            dg.Definitions(
                assets=defs.assets,
                asset_checks=defs.asset_checks,
                jobs=[job],
                resources=defs.resources,
                executor=defs.executor,
            )
            .resolve_job_def("ask")
            .execute_in_process(instance=instance, raise_on_error=False)
        )
        (evaluation,) = asked.get_asset_check_evaluations()
        assert not evaluation.passed


class TestFailures:
    @pytest.fixture
    def failed(self, run: Runner) -> dg.ExecuteInProcessResult:
        """A swap that is refused, since nothing is embedded."""
        assert run("expand_job").success
        result = run("swap_job")
        assert not result.success
        return result

    def tell(self, instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> str:
        run = instance.get_run_by_id(result.run_id)
        (event,) = [event for event in result.all_events if event.event_type == dg.DagsterEventType.PIPELINE_FAILURE]
        with dg.build_run_status_sensor_context(
            sensor_name="tell_failures", dagster_instance=instance, dagster_run=run, dagster_event=event
        ).for_run_failure() as context:
            found = tell_failures(context)
        return str(found.skip_message) if found is not None else "told"

    def test_a_failed_run_is_told_with_its_reason_and_others_are_counted(
        self,
        instance: dg.DagsterInstance,
        failed: dg.ExecuteInProcessResult,
        slack: Slack,
        monkeypatch: pytest.MonkeyPatch,
    ):
        assert self.tell(instance, failed) == "told"
        text = slack.messages[0]["text"]
        assert f"swap_job failed in run {failed.run_id[:8]}: " in text
        assert f"<http://127.0.0.1:3000/runs/{failed.run_id}|Dagster UI>" in text

        assert "is counted" in self.tell(instance, failed)
        assert len(slack.messages) == 1
        monkeypatch.setattr(alarm_sensors, "_QUIET_SECONDS", 0.0)
        assert self.tell(instance, failed) == "told"
        assert "1 other runs have failed since the last message." in slack.messages[1]["text"]

    @pytest.mark.usefixtures("expanded")
    def test_a_partition_is_told_after_its_last_attempt(
        self, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        first = instance.get_run_by_id(run("backfill_job", KEYS[0]).run_id)
        settings = load_settings()
        assert is_tried_again(instance, THE_TABLE, settings, first)
        last = instance.get_run_by_id(run("backfill_job", KEYS[0]).run_id)
        assert not is_tried_again(instance, THE_TABLE, settings, last)

    @pytest.mark.usefixtures("expanded")
    def test_a_range_of_partitions_is_told_after_its_last_attempt(
        self, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        first = instance.get_run_by_id(run.backfill().run_id)
        assert is_tried_again(instance, THE_TABLE, load_settings(), first)
        run("backfill_job", KEYS[0])
        one_is_left = instance.get_run_by_id(run("backfill_job", KEYS[1]).run_id)
        assert not is_tried_again(instance, THE_TABLE, load_settings(), one_is_left)
        assert is_tried_again(instance, THE_TABLE, load_settings(), first)
        last = instance.get_run_by_id(run.backfill().run_id)
        assert not is_tried_again(instance, THE_TABLE, load_settings(), last)

    @pytest.mark.usefixtures("expanded")
    def test_a_failed_check_of_a_partition_is_told_since_nothing_runs_it_again(
        self, instance: dg.DagsterInstance, run: Runner, database: Database
    ):
        assert run("backfill_job", KEYS[0]).success
        execute(
            database,
            "UPDATE segments SET embedding_384 = embedding_384 * array_fill(2, ARRAY[384])::vector WHERE id = 7",
        )
        failed = run("backfill_job", KEYS[0])
        assert not failed.success

        assert not is_tried_again(instance, THE_TABLE, load_settings(), instance.get_run_by_id(failed.run_id))

    def test_without_slack_it_says_why_nobody_is_told(
        self, instance: dg.DagsterInstance, failed: dg.ExecuteInProcessResult
    ):
        assert self.tell(instance, failed) == "SLACK_TOKEN and SLACK_CHANNEL are not set"

    def test_what_slack_refuses_is_said_without_the_token(self, slack: Slack):
        slack.answer = '{"ok": false, "error": "channel_not_found"}'
        prevented = tell_slack(load_settings(), "a <!channel> & more")
        assert "channel_not_found" in str(prevented) or "Slack did not take it" in str(prevented)
        assert TOKEN not in str(prevented)
        assert "a &lt;!channel&gt; &amp; more" in slack.messages[0]["text"]

    def test_a_slack_that_cannot_be_reached_stops_nothing(self):
        settings = load_settings(slack_token=TOKEN, slack_channel="#x", slack_api_url="http://127.0.0.1:1/api/")
        prevented = tell_slack(settings, "a message")
        assert "refused" in str(prevented)
        assert TOKEN not in str(prevented)

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("bge_pipeline.orchestration.slack.find_spec", lambda _: None)
        told = why_silent(load_settings(slack_token=TOKEN, slack_channel="#x"))
        assert "pip install 'bge-pipeline[slack]'" in str(told)
