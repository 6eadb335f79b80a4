"""A run that repeats another bears the other's tags, whoever repeats it: what they say of the other is not said of it."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.names import (
    BUDGET_SPENT_TAG,
    EMBED_PENDING_JOB,
    KEEP_OLD_CURRENT_JOB,
    LEFT_PENDING_TAG,
    WITHOUT_OLD_MODEL_TAG,
)
from bge_pipeline.orchestration.own_tags import tag_itself
from bge_pipeline.orchestration.run_history import consecutive_failures, lately_without_old_model
from bge_pipeline.orchestration.sensors import embed_new_rows
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.orchestration.workers import WORKER_TAG, fail_runs_without_process
from bge_pipeline.process import this_process
from bge_pipeline_tests.orchestration.conftest import Runner, consenting, insert_segment, repeat, report
from bge_pipeline_tests.support import forget_old_model

pytestmark = pytest.mark.pgvector

SUCCESS, FAILURE = dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE


def ended(
    instance: dg.DagsterInstance, job: str, event: dg.DagsterEventType, tag: str, value: str = "true"
) -> dg.DagsterRun:
    """A run that set a tag on itself and ended."""
    run = instance.create_run_for_job(defs.resolve_job_def(job))
    tag_itself(instance, run.run_id, tag, value)
    return report(instance, run, event)


def test_the_old_model_is_looked_for_again_once_a_run_found_it(
    instance: dg.DagsterInstance, run: Runner, database: Database, monkeypatch: pytest.MonkeyPatch
):
    run.migrate()
    assert run.retire().success
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    assert run("expand_job", run_config=consenting(begin_next_migration="hashing")).success
    forget_old_model(database)
    insert_segment(database, 1_000)
    without = instance.get_run_by_id(run("keep_old_current_job").run_id)
    assert without is not None
    assert lately_without_old_model(instance, THE_TABLE)

    repeated = report(instance, repeat(instance, without), SUCCESS)

    assert WITHOUT_OLD_MODEL_TAG in repeated.tags
    assert not lately_without_old_model(instance, THE_TABLE)
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        asked = embed_new_rows.of(THE_TABLE)(context)
    assert isinstance(asked, dg.SensorResult)
    assert [request.job_name for request in asked.run_requests or ()] == [KEEP_OLD_CURRENT_JOB]


def test_a_run_that_wrote_what_the_one_it_repeats_could_not_ends_the_row_of_those(instance: dg.DagsterInstance):
    stuck = ended(instance, EMBED_PENDING_JOB, SUCCESS, LEFT_PENDING_TAG, "7")
    assert [attempt.left_pending for attempt in consecutive_failures(instance, EMBED_PENDING_JOB)] == [7]

    report(instance, repeat(instance, stuck), SUCCESS)

    assert consecutive_failures(instance, EMBED_PENDING_JOB) == []


def test_a_budget_is_spent_by_the_run_that_spent_it_alone(instance: dg.DagsterInstance):
    report(instance, repeat(instance, ended(instance, EMBED_PENDING_JOB, FAILURE, BUDGET_SPENT_TAG)), FAILURE)

    spent, failed = consecutive_failures(instance, EMBED_PENDING_JOB)
    assert (spent.has_spent_budget, failed.has_spent_budget) == (True, False)


@pytest.fixture
def begun(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A retry of a run whose process was killed, before it says which process is its own."""
    here, pid, start = this_process().rsplit("/", 2)
    killed = ended(instance, "status_job", FAILURE, WORKER_TAG, f"{here}/{pid}/{start}0")
    return report(instance, repeat(instance, killed), dg.DagsterEventType.RUN_START)


def test_a_retry_is_not_failed_for_the_process_of_the_run_that_was_killed(
    instance: dg.DagsterInstance, begun: dg.DagsterRun
):
    assert WORKER_TAG in begun.tags
    assert fail_runs_without_process(instance) == []
    assert report(instance, begun).status == dg.DagsterRunStatus.STARTED


def test_nor_by_the_failure_of_a_task_that_was_delivered_twice(instance: dg.DagsterInstance, begun: dg.DagsterRun):
    pytest.importorskip("dagster_celery", reason="needs the extra `celery`")
    from bge_pipeline.orchestration.celery_app import report_failure

    report_failure(begun.run_id, RuntimeError("WorkerLostError"))

    assert report(instance, begun).status == dg.DagsterRunStatus.STARTED
