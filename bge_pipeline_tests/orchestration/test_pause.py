"""Pause and resume in Dagster: two jobs, and what the sensors and a run make of the flag."""

import threading

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import pause, resume
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, insert_segment
from bge_pipeline_tests.orchestration.test_sensors import Tick, tick  # noqa: F401 - a fixture
from bge_pipeline_tests.support import application, wait_until

pytestmark = pytest.mark.pgvector


def messages_of(instance: dg.DagsterInstance, job: str) -> list[str]:
    """The log of every run of a job."""
    return [
        record.event_log_entry.user_message
        for begun in instance.get_runs()
        if begun.job_name == job
        for record in instance.get_records_for_run(begun.run_id).records
    ]


def test_the_jobs_pause_and_resume_and_say_which_run_did_it(run: Runner, migration: Migration):
    run("expand_job")
    paused = run("pause_job", run_config={"ops": {"pause_runs": {"config": {"reason": "the shop is slow"}}}})
    assert paused.success
    found = read_status(migration).paused
    assert found is not None
    assert found.by.startswith(f"Dagster run {paused.run_id[:8]} (")
    assert found.reason == "the shop is slow"
    (observed,) = [event for event in paused.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    assert observed.asset_key == dg.AssetKey("backfilled_embeddings")

    assert run("resume_job").success
    assert read_status(migration).paused is None


def test_a_job_on_a_table_without_a_migration_fails_with_what_to_do(run: Runner):
    failed = run("pause_job")
    assert not failed.success
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    assert "no migration of" in failure.step_failure_data.user_failure_data.description


def test_the_jobs_need_no_slot_of_the_encoders_pool():
    for job, op in (("pause_job", "pause_runs"), ("resume_job", "resume_runs")):
        assert defs.resolve_job_def(job).graph.node_dict[op].definition.pool is None


def test_a_partition_waits_and_its_log_says_for_whom(run: Runner, migration: Migration, instance: dg.DagsterInstance):
    run("expand_job")
    pause(migration, by="anna@desk")
    results: list[dg.ExecuteInProcessResult] = []
    thread = threading.Thread(target=lambda: results.append(run("backfill_job", KEYS[0])))
    thread.start()

    try:
        words = "held back: paused by anna@desk"
        wait_until(lambda: any(words in message for message in messages_of(instance, "backfill_job")), 60)
        assert read_status(migration).embedded == 0
    finally:
        resume(migration)
        thread.join()
    assert results[0].success
    assert read_status(migration).embedded == 100


def test_sensors_request_nothing_on_a_paused_table_and_say_so(
    run: Runner,
    tick: Tick,  # noqa: F811
    database: Database,
    migration: Migration,
    monkeypatch: pytest.MonkeyPatch,
):
    from bge_pipeline.orchestration.sensors import embed_new_rows, rerun_failed_partitions

    run("expand_job")
    run.backfill(KEYS[1], KEYS[2])
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    run("backfill_job", KEYS[0])
    monkeypatch.delenv("EMBEDDING_DIMENSIONS")
    pause(migration, by="anna@desk")
    assert "the table is paused by anna@desk" in str(tick(rerun_failed_partitions))
    resume(migration)
    assert run("backfill_job", KEYS[0]).success
    insert_segment(database, 1_000)
    pause(migration, by="anna@desk")
    assert "the table is paused by anna@desk" in str(tick(embed_new_rows))
    resume(migration)
    assert isinstance(tick(embed_new_rows), dg.SensorResult)


def test_the_log_of_a_run_names_whom_an_index_build_waits_for(
    run: Runner, database: Database, instance: dg.DagsterInstance
):
    run("expand_job")
    run.backfill()
    results: list[dg.ExecuteInProcessResult] = []
    thread = threading.Thread(target=lambda: results.append(run("swap_job")))
    with application(database) as other:
        pid = other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'secret' WHERE id = 1")
        thread.start()
        try:
            words = f"waiting for pid {pid}, application, role postgres"
            wait_until(lambda: any(words in message for message in messages_of(instance, "swap_job")), 60)
        finally:
            other.rollback()
            thread.join()
    assert results[0].success
    assert not any("secret" in message for message in messages_of(instance, "swap_job"))
