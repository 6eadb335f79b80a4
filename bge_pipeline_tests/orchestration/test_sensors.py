"""What the sensors request, and what they say when they request nothing. Evaluated in this process."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration import run_history, sensors
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.per_table import PerTable
from bge_pipeline.orchestration.sensors import embed_new_rows, notice_old_vectors, rerun_failed_partitions
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.orchestration.workers import WORKER_TAG
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.status import read_status
from bge_pipeline.process import this_process
from bge_pipeline_tests.orchestration.conftest import (
    KEYS,
    UNREADABLE,
    Runner,
    consenting,
    insert_segment,
    request_backfill,
)
from bge_pipeline_tests.support import SEGMENTS, execute, forget_old_model

pytestmark = pytest.mark.pgvector

Tick = Callable[[PerTable[dg.SensorDefinition]], dg.SensorResult | str]


@pytest.fixture
def tick(instance: dg.DagsterInstance) -> Iterator[Tick]:
    """Evaluates a sensor: what it requests, or why it skips."""

    def evaluate(sensor: PerTable[dg.SensorDefinition]) -> dg.SensorResult | str:
        with dg.build_sensor_context(instance=instance, definitions=defs) as context:
            result = sensor.of(THE_TABLE)(context)
        if isinstance(result, dg.SkipReason):
            return str(result.skip_message)
        assert isinstance(result, dg.SensorResult)
        return result

    return evaluate


@pytest.fixture
def expanded(run: Runner) -> None:
    assert run("expand_job").success


@pytest.fixture
def broken(expanded: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes every run of the backfill fail at once, with a model of another size, until it is called."""
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    return lambda: monkeypatch.delenv("EMBEDDING_DIMENSIONS")


def requests(result: dg.SensorResult | str) -> list[tuple[str | None, str | None]]:
    assert isinstance(result, dg.SensorResult), result
    return [(request.job_name, request.partition_key) for request in result.run_requests or ()]


def grow(database: Database, rows: int) -> None:
    """So many new rows, the first with id 1,001."""
    execute(
        database,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text) "
        f"SELECT id + 1000, source_id, video_id, start_sec + 1e6, end_sec, text FROM segments WHERE id <= {rows}",
    )


def tell_of(database: Database, worker: str, minutes: int, run_id: str | None = None) -> None:
    """An entry of the journal that this worker kept fresh until so many minutes ago, and did not end."""
    facts = {"process": worker, "id_range": "all", "model": "m", "rows": 0, "rows_per_second": 0}
    if run_id is not None:  # which entries of earlier versions do not have
        facts["run_id"] = run_id
    execute(
        database,
        f"INSERT INTO {SEGMENTS.journal} (act, at, facts) VALUES ('worker', now() - :ago * interval '1 minute', "
        "CAST(:facts AS jsonb))",
        ago=minutes,
        facts=json.dumps(facts),
    )


class TestRerunFailedPartitions:
    @pytest.mark.usefixtures("expanded")
    def test_says_that_nothing_has_failed(self, tick: Tick):
        assert tick(rerun_failed_partitions) == "none of 3 partitions has failed"

    def test_requests_a_failed_partition_and_no_other(self, tick: Tick, run: Runner, broken: Callable[[], None]):
        failed = run("backfill_job", KEYS[1])
        broken()
        run("backfill_job", KEYS[0])

        result = tick(rerun_failed_partitions)

        assert requests(result) == [(None, KEYS[1])]
        assert result.run_requests[0].run_key == f"{KEYS[1]}:{failed.run_id}"

    @pytest.mark.usefixtures("broken")
    def test_requests_every_partition_of_a_range_that_failed(self, tick: Tick, run: Runner):
        run.backfill(KEYS[0], KEYS[1])

        assert requests(tick(rerun_failed_partitions)) == [(None, KEYS[0]), (None, KEYS[1])]

    @pytest.mark.usefixtures("broken")
    def test_looks_at_some_of_many_failed_partitions_and_goes_on_behind_them(
        self, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
    ):
        run.backfill()
        monkeypatch.setattr(sensors, "_PARTITIONS_PER_TICK", 2)
        cursor, found = None, []
        for _ in range(3):
            with dg.build_sensor_context(instance=instance, definitions=defs, cursor=cursor) as context:
                found.append([key for _, key in requests(rerun_failed_partitions.of(THE_TABLE)(context))])
                cursor = context.cursor
        assert found == [KEYS[:2], KEYS[2:], KEYS[:2]]

    @pytest.mark.usefixtures("broken")
    def test_counts_queued_partitions_without_reading_their_runs(
        self, tick: Tick, run: Runner, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ):
        run("backfill_job", KEYS[0])
        for key in KEYS:
            instance.create_run_for_job(
                defs.resolve_job_def("backfill_job"),
                status=dg.DagsterRunStatus.STARTED,
                tags={"dagster/partition": key},
                asset_selection=None,
            )
        monkeypatch.setattr(dg.DagsterInstance, "get_run_records", None)
        assert tick(rerun_failed_partitions) == (
            "3 of 3 partitions are not materialized by their last run: 3 are queued or under way"
        )

    @pytest.mark.usefixtures("broken")
    def test_waits_between_attempts(self, tick: Tick, run: Runner, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("RETRY_BACKOFF_SECONDS", "600")
        run("backfill_job", KEYS[0])

        message = tick(rerun_failed_partitions)

        assert "1 of 3 partitions are not materialized by their last run" in message
        assert "failed 1 times, next try in" in message

    @pytest.mark.usefixtures("broken")
    def test_gives_up_after_the_last_attempt_and_says_so(self, tick: Tick, run: Runner):
        run("backfill_job", KEYS[0])
        run("backfill_job", KEYS[0])

        assert f"gave up on {KEYS[0]}: failed 2 times (MAX_PARTITION_ATTEMPTS=2)" in tick(rerun_failed_partitions)

    def test_a_success_wipes_the_slate(self, tick: Tick, run: Runner, broken: Callable[[], None]):
        run("backfill_job", KEYS[0])
        broken()
        run("backfill_job", KEYS[0])

        assert tick(rerun_failed_partitions) == "none of 3 partitions has failed"

    def test_waits_for_a_database_that_cannot_be_reached_and_spends_no_attempt_on_it(
        self, tick: Tick, run: Runner, broken: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ):
        run("backfill_job", KEYS[0])
        broken()
        monkeypatch.setenv("DATABASE_URL", "postgresql://app:hunter2@127.0.0.1:1/app")

        message = tick(rerun_failed_partitions)

        assert "1 partitions wait to be run again: cannot reach" in message
        assert "hunter2" not in message

    @pytest.mark.usefixtures("broken")
    def test_never_starts_a_partition_that_is_queued_or_under_way(
        self, tick: Tick, run: Runner, instance: dg.DagsterInstance
    ):
        run("backfill_job", KEYS[0])
        instance.create_run_for_job(
            defs.resolve_job_def("backfill_job"),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[1]},
            asset_selection=None,
        )

        assert "2 are queued or under way" in tick(rerun_failed_partitions)

    @pytest.mark.usefixtures("expanded")
    def test_a_run_whose_process_was_killed_does_not_hold_its_partition(self, tick: Tick, instance: dg.DagsterInstance):
        killed = instance.create_run_for_job(
            defs.resolve_job_def("backfill_job"),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/partition": KEYS[0], WORKER_TAG: worker_that_has_ended()},
        )

        assert "Dagster itself retries" in tick(rerun_failed_partitions)
        assert instance.get_run_by_id(killed.run_id).status == dg.DagsterRunStatus.FAILURE

    @pytest.mark.usefixtures("expanded")
    def test_a_run_that_was_terminated_and_whose_process_is_gone_is_cancelled_and_not_run_again(
        self, tick: Tick, instance: dg.DagsterInstance
    ):
        terminated = instance.create_run_for_job(
            defs.resolve_job_def("backfill_job"),
            status=dg.DagsterRunStatus.CANCELING,
            tags={"dagster/partition": KEYS[0], WORKER_TAG: worker_that_has_ended()},
        )

        assert "was cancelled by somebody" in tick(rerun_failed_partitions)
        assert instance.get_run_by_id(terminated.run_id).status == dg.DagsterRunStatus.CANCELED

    @pytest.mark.usefixtures("expanded")
    @pytest.mark.parametrize("worker", [this_process(), "another-host/4026531836/1/1.00"], ids=["lives", "unseen"])
    def test_a_run_whose_process_lives_or_cannot_be_seen_is_under_way(
        self, tick: Tick, instance: dg.DagsterInstance, worker: str
    ):
        instance.create_run_for_job(
            defs.resolve_job_def("backfill_job"),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/partition": KEYS[0], WORKER_TAG: worker},
        )

        assert "1 is queued or under way" in tick(rerun_failed_partitions)

    @pytest.mark.usefixtures("expanded")
    @pytest.mark.parametrize(("minutes", "is_gone"), [(1, False), (10, True)])
    def test_a_run_on_another_machine_is_failed_when_its_heartbeat_stopped_long_ago(
        self, tick: Tick, instance: dg.DagsterInstance, database: Database, minutes: int, is_gone: bool
    ):
        worker = "another-host/4026531836/1/1.00"
        tell_of(database, worker, minutes)
        far = instance.create_run_for_job(
            defs.resolve_job_def("backfill_job"),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/partition": KEYS[0], WORKER_TAG: worker},
        )

        tick(rerun_failed_partitions)

        status = instance.get_run_by_id(far.run_id).status
        assert status == (dg.DagsterRunStatus.FAILURE if is_gone else dg.DagsterRunStatus.STARTED)

    @pytest.mark.usefixtures("expanded")
    def test_a_run_that_ended_while_it_was_looked_at_stays_as_it_ended(
        self, tick: Tick, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ):
        run = instance.create_run_for_job(
            defs.resolve_job_def("swap_job"),
            status=dg.DagsterRunStatus.STARTED,
            tags={WORKER_TAG: worker_that_has_ended()},
        )
        listed = dg.DagsterInstance.get_runs

        def list_and_end(self, *arguments, **options):
            runs = listed(self, *arguments, **options)
            if not self.get_run_by_id(run.run_id).is_finished:
                ended = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, "swap_job")
                self.report_dagster_event(ended, run.run_id)
            return runs

        monkeypatch.setattr(dg.DagsterInstance, "get_runs", list_and_end)
        tick(rerun_failed_partitions)
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.SUCCESS

    @pytest.mark.usefixtures("expanded")
    @pytest.mark.parametrize("later", ["another run began", "it tells of its next work"])
    def test_an_entry_that_could_not_be_ended_does_not_fail_what_its_process_does_next(
        self, tick: Tick, instance: dg.DagsterInstance, database: Database, later: str
    ):
        worker = "another-host/4026531836/1/1.00"
        for minutes in (10, 0) if later == "it tells of its next work" else (10,):
            tell_of(database, worker, minutes)
        has_begun = later == "another run began"
        run = instance.create_run_for_job(
            defs.resolve_job_def("swap_job"),
            status=dg.DagsterRunStatus.NOT_STARTED if has_begun else dg.DagsterRunStatus.STARTED,
            tags={WORKER_TAG: worker},
        )
        if has_begun:  # with a time of its own
            began = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "swap_job")
            instance.report_dagster_event(began, run.run_id)

        tick(rerun_failed_partitions)

        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED

    @pytest.mark.usefixtures("expanded")
    @pytest.mark.parametrize(
        ("is_its_own", "began_minutes_ago"), [(True, 0), (False, 20)], ids=["clock ahead", "clock behind"]
    )
    def test_whose_entry_it_is_is_told_by_the_run_that_it_names_whatever_the_clock_of_its_machine(
        self, tick: Tick, instance: dg.DagsterInstance, database: Database, is_its_own: bool, began_minutes_ago: int
    ):
        worker = "another-host/4026531836/1/1.00"
        run = instance.create_run_for_job(
            defs.resolve_job_def("swap_job"), status=dg.DagsterRunStatus.NOT_STARTED, tags={WORKER_TAG: worker}
        )
        began = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "swap_job")
        instance.report_dagster_event(began, run.run_id, timestamp=time.time() - 60 * began_minutes_ago)
        tell_of(database, worker, 10, run.run_id if is_its_own else "another")

        tick(rerun_failed_partitions)

        status = instance.get_run_by_id(run.run_id).status
        assert status == (dg.DagsterRunStatus.FAILURE if is_its_own else dg.DagsterRunStatus.STARTED)

    @pytest.mark.usefixtures("expanded")
    def test_the_heartbeats_of_a_run_name_it(self, run: Runner, database: Database):
        done = run("backfill_job", KEYS[0])

        told = execute(database, f"SELECT facts->>'run_id' FROM {SEGMENTS.journal} WHERE act = 'worker'")
        assert [row[0] for row in told] == [done.run_id]

    @pytest.mark.usefixtures("broken")
    def test_leaves_a_run_to_dagsters_own_retries(self, tick: Tick, run: Runner, instance: dg.DagsterInstance):
        failed = run("backfill_job", KEYS[0])
        instance.add_run_tags(failed.run_id, {"dagster/will_retry": "true"})

        assert "Dagster itself retries" in tick(rerun_failed_partitions)

    @pytest.mark.usefixtures("broken")
    def test_leaves_a_partition_to_a_backfill_that_will_run_it(
        self, tick: Tick, run: Runner, instance: dg.DagsterInstance
    ):
        run("backfill_job", KEYS[0])
        request_backfill(instance, [KEYS[0], KEYS[2]])

        assert "a Dagster backfill that is under way includes it" in tick(rerun_failed_partitions)

    @pytest.mark.usefixtures("broken")
    def test_a_backfill_has_no_claim_to_what_it_has_run_before_another_run(
        self, tick: Tick, run: Runner, instance: dg.DagsterInstance
    ):
        request_backfill(instance, [KEYS[0], KEYS[2]])
        run("backfill_job", KEYS[0], tags={"dagster/backfill": "requested"})
        assert requests(tick(rerun_failed_partitions)) == [(None, KEYS[0])]

        run("backfill_job", KEYS[0])

        assert "failed 2 times" in tick(rerun_failed_partitions)

    @pytest.mark.usefixtures("expanded")
    def test_a_failed_check_is_not_a_failed_partition(self, tick: Tick, run: Runner, database: Database):
        run("backfill_job", KEYS[0])
        execute(
            database,
            "UPDATE segments SET embedding_384 = embedding_384 * array_fill(2, ARRAY[384])::vector WHERE id = 7",
        )

        assert not run("backfill_job", KEYS[0]).success

        assert tick(rerun_failed_partitions) == "none of 3 partitions has failed"


class TestEmbedNewRows:
    def test_leaves_a_legacy_table_alone(self, tick: Tick):
        assert "phase legacy" in tick(embed_new_rows)

    @pytest.mark.usefixtures("expanded")
    def test_does_not_begin_the_backfill_by_itself(self, tick: Tick, run: Runner):
        assert "3 of 3 partitions have not been materialized" in tick(embed_new_rows)
        run("backfill_job", KEYS[0])
        assert "2 of 3 partitions have not been materialized" in tick(embed_new_rows)

    @pytest.mark.usefixtures("expanded")
    def test_embeds_new_and_changed_rows_once_the_backfill_is_done(
        self, tick: Tick, run: Runner, database: Database, migration: Migration
    ):
        run.backfill()
        assert "nothing is pending" in tick(embed_new_rows)
        insert_segment(database, 1_000)
        execute(database, "UPDATE segments SET text = 'something else' WHERE id = 5")

        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]

        assert run("embed_pending_job").success
        assert read_status(migration).pending == 0
        assert "nothing is pending" in tick(embed_new_rows)

    def test_goes_on_after_the_swap_and_after_retire(
        self, tick: Tick, database: Database, migration: Migration, run: Runner
    ):
        run.migrate()
        insert_segment(database, 1_000)
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]
        run.retire()
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]

        run("embed_pending_job")

        assert read_status(migration).pending == 0

    def test_adds_a_partition_for_each_full_range_that_the_table_has_grown_by(
        self, tick: Tick, database: Database, migration: Migration, run: Runner, instance: dg.DagsterInstance
    ):
        run.migrate()
        grow(database, 250)

        result = tick(embed_new_rows)

        new = ["04_301-1100", "05_1101-1200"]
        assert requests(result) == [("backfill_job", key) for key in new]
        assert list(result.dynamic_partitions_requests[0].partition_keys) == new
        instance.add_dynamic_partitions("id_ranges", new)
        for key in new:
            assert run("backfill_job", key).success
        assert known_keys(instance, THE_TABLE) == [*KEYS, *new]
        assert read_status(migration).pending == 50
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]

    @pytest.mark.usefixtures("expanded")
    def test_asks_again_for_the_run_of_a_grown_partition_that_was_lost_and_not_for_one_that_came(
        self, tick: Tick, database: Database, run: Runner, instance: dg.DagsterInstance
    ):
        assert run.backfill().success
        grow(database, 250)
        new = ["04_301-1100", "05_1101-1200"]
        first = tick(embed_new_rows)
        assert [request.run_key for request in first.run_requests] == [None, None]
        instance.add_dynamic_partitions("id_ranges", new)  # and the daemon is killed

        again = tick(embed_new_rows)

        assert requests(again) == [("backfill_job", key) for key in new]
        assert not again.dynamic_partitions_requests
        assert run("backfill_job", new[0]).success
        assert requests(tick(embed_new_rows)) == [("backfill_job", new[1])]
        instance.report_run_canceled(
            instance.create_run_for_job(
                defs.resolve_job_def("backfill_job"),
                status=dg.DagsterRunStatus.STARTED,
                tags={"dagster/partition": new[1]},
            )
        )
        assert "1 of 5 partitions have not been materialized" in tick(embed_new_rows), "what ran is a person's"

    @pytest.mark.usefixtures("expanded")
    def test_a_grown_partition_that_somebody_deleted_is_added_and_run_again(
        self, tick: Tick, database: Database, run: Runner, instance: dg.DagsterInstance
    ):
        assert run.backfill().success
        grow(database, 150)
        assert requests(tick(embed_new_rows)) == [("backfill_job", "04_301-1100")]
        instance.add_dynamic_partitions("id_ranges", ["04_301-1100"])
        instance.delete_dynamic_partition("id_ranges", "04_301-1100")

        again = tick(embed_new_rows)

        assert requests(again) == [("backfill_job", "04_301-1100")]
        assert list(again.dynamic_partitions_requests[0].partition_keys) == ["04_301-1100"]
        assert again.run_requests[0].run_key is None, "Dagster drops a key that it has run"

    @pytest.mark.usefixtures("expanded")
    def test_partitions_of_the_cut_wait_for_a_person_whatever_grew_behind_them(
        self, tick: Tick, run: Runner, instance: dg.DagsterInstance
    ):
        assert run.backfill(KEYS[0], KEYS[1]).success
        instance.add_dynamic_partitions("id_ranges", ["04_301-1100"])

        assert "2 of 4 partitions have not been materialized" in tick(embed_new_rows)

    def test_waits_for_a_run_that_is_under_way(self, tick: Tick, instance: dg.DagsterInstance):
        instance.create_run_for_job(defs.resolve_job_def("embed_pending_job"), status=dg.DagsterRunStatus.STARTED)

        assert "embed_pending_job is queued or under way in run" in tick(embed_new_rows)

    @pytest.mark.usefixtures("expanded")
    def test_waits_for_a_backfill_that_is_under_way(self, tick: Tick, instance: dg.DagsterInstance):
        request_backfill(instance, KEYS)

        assert "is under way" in tick(embed_new_rows)

    @pytest.mark.usefixtures("expanded")
    def test_tries_later_after_a_failure(
        self, tick: Tick, run: Runner, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        run.backfill()
        insert_segment(database, 1_000)
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        assert not run("embed_pending_job").success
        monkeypatch.delenv("EMBEDDING_DIMENSIONS")
        monkeypatch.setenv("RETRY_BACKOFF_SECONDS", "600")

        assert "embed_pending_job failed 1 times, next try in" in tick(embed_new_rows)

    @pytest.mark.usefixtures("expanded")
    def test_tries_later_where_a_run_could_not_write_what_waits_and_at_once_when_more_waits(
        self, tick: Tick, run: Runner, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        run.backfill()
        insert_segment(database, 1_000)
        monkeypatch.setenv("BACKFILL_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("RETRY_BACKOFF_SECONDS", "600")
        with database.transaction() as idle:
            idle.exec_driver_sql("SELECT FROM segments WHERE id = 1000 FOR UPDATE")
            assert run("embed_pending_job").success
            later = tick(embed_new_rows)
        assert "1 rows are pending; embed_pending_job could write none in 1 runs: they are locked" in str(later)
        assert "next try in" in str(later)
        insert_segment(database, 1_001)
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]

        assert run("embed_pending_job").success

        insert_segment(database, 1_002)
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]

    def test_says_that_the_database_cannot_be_reached_and_keeps_the_password(
        self, tick: Tick, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("DATABASE_URL", "postgresql://app:hunter2@127.0.0.1:1/app")

        message = tick(embed_new_rows)

        assert "cannot reach postgresql+psycopg2://app:***@127.0.0.1:1/app" in message
        assert "hunter2" not in message


class TestTheNextMigration:
    """Of a table that this project keeps current: search reads vectors that it has to make."""

    @pytest.fixture
    def begun(self, run: Runner, migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second migration, to 256 dimensions, expanded; the first was the command's. No partition is materialized."""
        with open_service(migration) as service:
            migrate(migration, service)
        retire(migration)
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        assert run("expand_job", run_config=consenting(begin_next_migration="hashing")).success

    @pytest.mark.usefixtures("begun")
    def test_embeds_for_search_what_is_written_before_the_backfill_is_launched(
        self, tick: Tick, run: Runner, database: Database, migration: Migration
    ):
        assert "3 of 3 partitions have not been materialized" in tick(embed_new_rows)
        insert_segment(database, 1_000)

        assert requests(tick(embed_new_rows)) == [("keep_old_current_job", None)]

        assert run("keep_old_current_job").success
        status = read_status(migration)
        assert (status.not_searchable, status.pending) == (0, 301)
        assert "3 of 3 partitions have not been materialized" in tick(embed_new_rows)

    def test_what_failed_before_it_is_no_attempt_of_its_partitions(
        self, tick: Tick, run: Runner, monkeypatch: pytest.MonkeyPatch
    ):
        run.migrate()
        assert run.retire().success
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
        assert not run("backfill_job", KEYS[0]).success
        assert run("expand_job", run_config=consenting(begin_next_migration="hashing")).success
        assert tick(rerun_failed_partitions) == "none of 3 partitions has failed"
        monkeypatch.setenv("EMBEDDING_DIMENSIONS", "128")

        assert not run("backfill_job", KEYS[0]).success

        assert requests(tick(rerun_failed_partitions)) == [(None, KEYS[0])]

    @pytest.mark.usefixtures("begun")
    def test_a_partition_of_the_backfill_keeps_search_current_too(
        self, run: Runner, database: Database, migration: Migration
    ):
        insert_segment(database, 1_000)

        assert run("backfill_job", KEYS[0]).success

        assert read_status(migration).not_searchable == 0

    @pytest.mark.usefixtures("begun")
    def test_embeds_for_both_once_the_backfill_is_done_and_until_retire(
        self, tick: Tick, run: Runner, database: Database, migration: Migration
    ):
        assert run.backfill().success
        insert_segment(database, 1_000)
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]
        assert run("embed_pending_job").success
        assert read_status(migration).not_searchable == 0
        assert run("swap_job").success
        insert_segment(database, 1_001)
        assert requests(tick(embed_new_rows)) == [("embed_pending_job", None)]

        assert run("embed_pending_job").success

        assert read_status(migration).without_previous == 0
        assert "nothing is pending" in tick(embed_new_rows)

    @pytest.mark.usefixtures("begun")
    def test_does_not_ask_again_and_again_for_a_model_that_is_not_there(
        self, tick: Tick, run: Runner, database: Database
    ):
        forget_old_model(database)
        insert_segment(database, 1_000)
        assert requests(tick(embed_new_rows)) == [("keep_old_current_job", None)]

        assert run("keep_old_current_job").success

        assert "3 of 3 partitions have not been materialized" in tick(embed_new_rows)

    @pytest.mark.usefixtures("begun")
    def test_leaves_the_old_model_alone_where_the_settings_say_so(
        self, tick: Tick, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("KEEP_OLD_CURRENT", "off")
        insert_segment(database, 1_000)

        assert "3 of 3 partitions have not been materialized" in tick(embed_new_rows)

    @pytest.mark.usefixtures("begun")
    def test_waits_for_a_run_that_is_under_way(self, tick: Tick, database: Database, instance: dg.DagsterInstance):
        insert_segment(database, 1_000)
        instance.create_run_for_job(defs.resolve_job_def("keep_old_current_job"), status=dg.DagsterRunStatus.STARTED)

        assert "keep_old_current_job is queued or under way in run" in tick(embed_new_rows)


class TestNoticeOldVectors:
    @pytest.fixture
    def swapped(self, run: Runner, database: Database) -> None:
        """A migration from 384 dimensions to 384."""
        with database.transaction() as connection:
            connection.exec_driver_sql("ALTER TABLE segments DROP COLUMN embedding")
            connection.exec_driver_sql("ALTER TABLE segments ADD COLUMN embedding vector(384)")
        run.migrate()

    @pytest.mark.usefixtures("swapped")
    def test_has_what_was_written_compared_and_says_what_came_of_it(
        self, run: Runner, database: Database, instance: dg.DagsterInstance
    ):
        def look(cursor: str | None) -> dg.SensorResult | dg.SkipReason:
            with dg.build_sensor_context(instance=instance, definitions=defs, cursor=cursor) as context:
                return notice_old_vectors.of(THE_TABLE)(context)

        for cursor in (None, *UNREADABLE):
            assert "none of the old model was seen" in str(look(cursor).skip_message)
        execute(database, f"UPDATE segments SET text = 'x', embedding = '{[1.0] + [0.0] * 383}' WHERE id = 7")
        result = look(None)
        assert requests(result) == [(None, None)]

        assert run("compare_job").success

        again = look(result.cursor)
        deadline = time.monotonic() + 30
        while isinstance(again, dg.SensorResult) and time.monotonic() < deadline:
            again = look(again.cursor)  # a transaction of another database that ran meanwhile makes it look once more
        assert "1 of 1 rows written since the swap (for example 7) hold vectors that" in str(again.skip_message)
        execute(database, "UPDATE segments SET embedding = NULL WHERE id = 7")
        assert run("embed_pending_job").success
        assert run("compare_job").success
        assert requests(look(result.cursor)) == [(None, None)]
        with dg.build_sensor_context(instance=instance, definitions=defs) as context:
            assert run_history.failed_check(context.instance, dg.AssetKey("swapped_index"), "only_new_vectors") is None

    def test_has_nothing_to_do_where_the_dimensions_differ(self, tick: Tick, run: Runner):
        assert "keep vectors of another model out" in tick(notice_old_vectors)
        run.migrate()
        assert "keep vectors of another model out" in tick(notice_old_vectors)


def worker_that_has_ended() -> str:
    code = "from bge_pipeline.process import this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
