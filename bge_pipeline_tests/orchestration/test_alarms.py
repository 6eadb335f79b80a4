"""What alarms a person: a backfill that stands still, failed runs; told in the UI, and to a real server in Slack's place."""

import json
import socket
import threading
from contextlib import suppress

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from bge_pipeline.database.connection import Database
from bge_pipeline.database.heartbeat import Heartbeat
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration import alarm_sensors
from bge_pipeline.orchestration.alarm_sensors import tell_failures, tried_again, watch_movement
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.orchestration.slack import tell_slack, why_silent
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.movement import read_movement
from bge_pipeline.phases.pause import pause
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.orchestration.conftest import KEYS, SLACK_TOKEN, UNREADABLE, Runner, Slack, insert_segment
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector


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
        assert slack.tokens == [f"Bearer {SLACK_TOKEN}"]

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


OURS, THEIRS = RegisteredCodeLocationOrigin("ours"), RegisteredCodeLocationOrigin("theirs")


@pytest.mark.usefixtures("expanded")
@pytest.mark.parametrize("cursor", UNREADABLE)
def test_a_cursor_that_cannot_be_read_counts_as_none(instance: dg.DagsterInstance, cursor: str):
    assert isinstance(tick(instance, cursor), dg.SensorResult)


@pytest.mark.usefixtures("expanded")
def test_a_field_of_a_later_version_is_left_out_of_a_cursor(instance: dg.DagsterInstance):
    later = '{"said": "moving", "waiting_since": null, "is_untold": false, "colour": "green"}'
    assert "the last vector or phase was" in str(tick(instance, later))


class Failures:
    """Ticks of tell_failures as the daemon evaluates them, each with the cursor of the one before."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        self.tick()

    def tick(self) -> str:
        """What the tick says."""
        with dg.SensorEvaluationContext(
            instance_ref=None,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursor,
            repository_name="__repository__",
            instance=self.instance,
            code_location_origin=OURS,
        ) as context:
            found = tell_failures.evaluate_tick(context)
        self.cursor = found.cursor
        return str(found.skip_message)

    def fail(
        self, number: int = 1, *, launched_by: RegisteredCodeLocationOrigin | None = OURS, is_retried: bool = False
    ) -> dg.DagsterRun:
        """So many runs fail, by `dagster job execute` where no code location launched them; returns the last."""
        repository = RemoteRepositoryOrigin(launched_by, "__repository__") if launched_by is not None else None
        for _ in range(number):
            run = self.instance.create_run_for_job(
                defs.resolve_job_def("status_job"),
                status=dg.DagsterRunStatus.STARTED,
                remote_job_origin=RemoteJobOrigin(repository, "status_job") if repository is not None else None,
                tags={"dagster/max_retries": "3" if is_retried else "0"},
            )
            self.instance.report_run_failed(run, "its machine is gone")
        return run


@pytest.fixture
def failures(instance: dg.DagsterInstance) -> Failures:
    return Failures(instance)


class TestFailures:
    @pytest.mark.usefixtures("expanded")
    def test_a_failed_run_is_told_with_its_reason_and_others_are_counted(
        self, failures: Failures, run: Runner, slack: Slack, monkeypatch: pytest.MonkeyPatch
    ):
        failed = run.rollback()  # refused, since nothing was exchanged
        assert failures.tick() == "told of 1 failed runs"
        text = slack.messages[0]["text"]
        assert f"rollback_job failed in run {failed.run_id[:8]}: " in text
        assert "there is no old column to go back to" in text
        assert f"<http://127.0.0.1:3000/runs/{failed.run_id}|Dagster UI>" in text

        failures.fail(2)
        assert "2 failed runs are counted, and told after" in failures.tick()
        assert len(slack.messages) == 1
        monkeypatch.setattr(alarm_sensors, "_QUIET_SECONDS", 0.0)
        last = failures.fail()
        assert failures.tick() == "told of 3 failed runs"
        text = slack.messages[1]["text"]
        assert f"status_job failed in run {last.run_id[:8]}: its machine is gone" in text
        assert "2 other runs have failed since the last message." in text
        assert failures.tick() == "no run has failed since the last look"

    def test_thirty_failures_are_read_in_one_tick_whether_told_or_not(self, failures: Failures, slack: Slack):
        failures.fail(15)
        failures.fail(15, is_retried=True)

        assert failures.tick() == "told of 15 failed runs"
        assert "14 other runs have failed" in slack.messages[0]["text"]
        assert failures.tick() == "no run has failed since the last look"

    def test_more_failures_than_a_tick_takes_in_are_read_in_the_next(
        self, failures: Failures, slack: Slack, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(alarm_sensors, "_FAILURES_PER_TICK", 2)
        failures.fail(5)

        assert failures.tick() == "told of 2 failed runs"
        assert "2 failed runs are counted" in failures.tick()
        assert "3 failed runs are counted" in failures.tick()
        assert len(slack.messages) == 1

    def test_a_failure_in_the_quiet_time_is_told_after_it_without_another(
        self, failures: Failures, slack: Slack, monkeypatch: pytest.MonkeyPatch
    ):
        failures.fail()
        failures.tick()
        last = failures.fail()
        assert "1 failed runs are counted" in failures.tick()
        assert len(slack.messages) == 1
        monkeypatch.setattr(alarm_sensors, "_QUIET_SECONDS", 0.0)

        assert failures.tick() == "told of 1 failed runs"
        assert f"status_job failed in run {last.run_id[:8]}: its machine is gone" in slack.messages[1]["text"]
        assert failures.tick() == "no run has failed since the last look"

    def test_what_slack_did_not_take_is_told_at_the_next_tick(self, failures: Failures, slack: Slack):
        taken, slack.answer = slack.answer, '{"ok": false, "error": "internal_error"}'
        failures.fail(3)
        assert "Slack did not take it" in failures.tick()
        assert len(slack.messages) == 1
        slack.answer = taken

        assert failures.tick() == "told of 3 failed runs"

    def test_what_failed_before_the_sensor_began_is_not_told(self, instance: dg.DagsterInstance, failures: Failures):
        failures.fail()
        assert Failures(instance).tick() == "no run has failed since the last look"

    @pytest.mark.parametrize("cursor", UNREADABLE)
    def test_a_cursor_that_cannot_be_read_counts_as_none(self, failures: Failures, cursor: str):
        behind = failures.cursor
        failures.cursor = cursor
        assert failures.tick() == "no run has failed since the last look"
        assert failures.cursor == behind

    def test_what_is_kept_of_a_table_and_cannot_be_read_counts_as_nothing(self, failures: Failures, slack: Slack):
        failures.instance.daemon_cursor_storage.set_cursor_values({"bge_pipeline/failures_told": '{"at": "noon"}'})
        failures.fail()
        assert failures.tick() == "told of 1 failed runs"
        assert len(slack.messages) == 1

    def test_it_goes_on_behind_the_cursor_of_an_earlier_version(self, failures: Failures, slack: Slack):
        before = str(failures.cursor)
        failures.fail()
        failures.cursor = json.dumps({"__class__": "RunStatusSensorCursor", "record_id": int(before)})

        assert failures.tick() == "told of 1 failed runs"
        assert len(slack.messages) == 1

    @pytest.mark.parametrize(("launched_by", "messages"), [(OURS, 1), (THEIRS, 0), (None, 1)])
    def test_runs_of_dagster_job_execute_are_told_and_those_of_another_code_location_are_not(
        self,
        failures: Failures,
        slack: Slack,
        launched_by: RegisteredCodeLocationOrigin | None,
        messages: int,
    ):
        failures.fail(launched_by=launched_by)
        failures.tick()
        assert len(slack.messages) == messages

    @pytest.mark.usefixtures("slack")
    def test_a_run_that_dagster_starts_again_is_not_told_unless_it_did_not_launch_it(self, failures: Failures):
        failures.fail(is_retried=True)
        assert failures.tick() == "1 failed runs are tried again"
        failures.fail(is_retried=True, launched_by=None)
        assert failures.tick() == "told of 1 failed runs"

    @pytest.mark.usefixtures("expanded")
    def test_a_partition_is_told_after_its_last_attempt(
        self, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        first = instance.get_run_by_id(run("backfill_job", KEYS[0]).run_id)
        settings = load_settings()
        assert tried_again(instance, THE_TABLE, settings, [first])
        last = instance.get_run_by_id(run("backfill_job", KEYS[0]).run_id)
        assert not tried_again(instance, THE_TABLE, settings, [last])

    @pytest.mark.usefixtures("expanded")
    def test_a_range_of_partitions_is_told_after_its_last_attempt(
        self, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        first = instance.get_run_by_id(run.backfill().run_id)
        assert tried_again(instance, THE_TABLE, load_settings(), [first])
        run("backfill_job", KEYS[0])
        one_is_left = instance.get_run_by_id(run("backfill_job", KEYS[1]).run_id)
        assert not tried_again(instance, THE_TABLE, load_settings(), [one_is_left])
        assert tried_again(instance, THE_TABLE, load_settings(), [first])
        last = instance.get_run_by_id(run.backfill().run_id)
        assert not tried_again(instance, THE_TABLE, load_settings(), [last])

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

        assert not tried_again(instance, THE_TABLE, load_settings(), [instance.get_run_by_id(failed.run_id)])

    def test_without_slack_it_says_why_nobody_is_told(self, failures: Failures):
        failures.fail()
        assert failures.tick() == "SLACK_TOKEN and SLACK_CHANNEL are not set"

    def test_what_slack_refuses_is_said_without_the_token(self, slack: Slack):
        slack.answer = '{"ok": false, "error": "channel_not_found"}'
        prevented = tell_slack(load_settings(), "a <!channel> & more")
        assert "channel_not_found" in str(prevented) or "Slack did not take it" in str(prevented)
        assert SLACK_TOKEN not in str(prevented)
        assert "a &lt;!channel&gt; &amp; more" in slack.messages[0]["text"]

    def test_a_slack_that_cannot_be_reached_stops_nothing(self):
        settings = load_settings(slack_token=SLACK_TOKEN, slack_channel="#x", slack_api_url="http://127.0.0.1:1/api/")
        prevented = tell_slack(settings, "a message")
        assert "refused" in str(prevented)
        assert SLACK_TOKEN not in str(prevented)

    @pytest.mark.parametrize(
        "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{", b""]
    )
    def test_an_answer_that_is_no_http_stops_nothing(self, answer: bytes):
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=answer_each, args=(server, answer), daemon=True).start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}/api/"
            prevented = tell_slack(load_settings(slack_token=SLACK_TOKEN, slack_channel="#x", slack_api_url=url), "hi")
        assert str(prevented).startswith("Slack did not take it: ")
        assert SLACK_TOKEN not in str(prevented)

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("bge_pipeline.orchestration.slack.find_spec", lambda _: None)
        told = why_silent(load_settings(slack_token=SLACK_TOKEN, slack_channel="#x"))
        assert "pip install 'bge-pipeline[slack]'" in str(told)


def answer_each(server: socket.socket, answer: bytes) -> None:
    """Answer all who connect with these bytes and hang up, until the server is closed."""
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)
