"""When new rows are embedded after runs that did not embed them: decided without Dagster, and tagged by real runs."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.embedding_requests import why_later
from bge_pipeline.orchestration.rerun_policy import Attempt, RerunPolicy
from bge_pipeline.orchestration.sensors import embed_new_rows
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline_tests.endpoint_server import serving
from bge_pipeline_tests.orchestration.conftest import Runner, insert_segment

POLICY = RerunPolicy(max_attempts=3, backoff_seconds=60)
JOB = "embed_pending_job"


def told(*attempts: Attempt, pending: int = 1, now: float) -> str | None:
    return why_later(JOB, attempts, pending, POLICY, now)


def test_after_failures_the_next_run_comes_later_each_time_however_many_there_were():
    failures = [Attempt(f"run-{number}", 1000.0 * number) for number in range(1, 6)]

    assert told(*failures, now=5_001) == f"{JOB} failed 5 times, next try in 959 s"
    assert told(*failures, now=5_961) is None


def test_runs_that_wrote_nothing_count_as_failures_until_more_rows_wait():
    stuck = [Attempt("run-1", 1_000, left_pending=1), Attempt("run-2", 2_000, left_pending=1)]

    assert "could write none in 2 runs" in str(told(*stuck, now=2_001))
    assert "next try in 119 s" in str(told(*stuck, now=2_001))
    assert told(*stuck, pending=2, now=2_001) is None
    assert told(*stuck, now=2_121) is None


def test_a_run_that_somebody_terminated_is_not_begun_again_ever():
    cancelled = Attempt("run-1", 1_000, was_cancelled=True)

    assert told(cancelled, pending=9, now=9_999_999) == (
        f"run run-1 of {JOB} was cancelled by somebody; launch {JOB} to go on"
    )


def test_a_cancelled_run_is_not_counted_as_a_failure():
    attempts = [Attempt("run-1", 1_000, was_cancelled=True), Attempt("run-2", 2_000)]

    assert told(*attempts, now=2_001) == f"{JOB} failed 1 times, next try in 59 s"


def test_a_budget_is_spent_once_a_day():
    spent = Attempt("run-1", 1_000, has_spent_budget=True)

    assert told(spent, pending=9, now=1_000 + 3_600) == (
        f"run run-1 of {JOB} has spent its budget, and the next has it anew: in 23.0 hours, or when somebody launches {JOB}"
    )
    assert told(spent, now=1_000 + 86_401) is None


def tick(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        result = embed_new_rows.of(THE_TABLE)(context)
    return str(result.skip_message) if isinstance(result, dg.SkipReason) else "requested"


@pytest.mark.pgvector
def test_the_sensor_waits_after_a_spent_budget(
    run: Runner, instance: dg.DagsterInstance, database: Database, monkeypatch: pytest.MonkeyPatch
):
    with serving() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        assert run("expand_job").success
        assert run.backfill().success
        insert_segment(database, 1_000)
        monkeypatch.setenv("EMBEDDING_MAX_TOKENS", "1")
        assert not run(JOB).success

        assert "1 rows are pending; run " in tick(instance)
        assert "has spent its budget, and the next has it anew: in 24.0 hours" in tick(instance)

        monkeypatch.delenv("EMBEDDING_MAX_TOKENS")
        assert run(JOB).success
        insert_segment(database, 1_001)
        assert tick(instance) == "requested"


@pytest.mark.pgvector
def test_the_sensor_leaves_a_terminated_run_to_a_person(run: Runner, instance: dg.DagsterInstance, database: Database):
    assert run("expand_job").success
    assert run.backfill().success
    insert_segment(database, 1_000)
    terminated = instance.create_run_for_job(defs.resolve_job_def(JOB), status=dg.DagsterRunStatus.CANCELING)
    instance.report_run_canceled(terminated)

    assert "was cancelled by somebody; launch embed_pending_job to go on" in tick(instance)

    assert run(JOB).success
    insert_segment(database, 1_001)
    assert tick(instance) == "requested"
