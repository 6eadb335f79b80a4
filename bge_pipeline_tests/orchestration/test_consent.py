"""In the UI a wrong click changes nothing: what destroys wants the table typed, what begins wants to be told so."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration.in_process import migrate_through_dagster
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import Runner, confirming, consenting
from bge_pipeline_tests.support import execute, fill_and_swap, schema_of

pytestmark = pytest.mark.pgvector

DESTRUCTIVE = ["rollback_job", "retire_job"]


def table(database: Database) -> object:
    return schema_of(database), execute(database, "SELECT id, embedding::text FROM segments ORDER BY id")


def failure_of(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> str:
    """What the UI shows of the step that failed, which Dagster must not have tried again."""
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    assert "nothing was changed" in failure.metadata["state"].value
    return str(failure.description)


@pytest.mark.parametrize("job", DESTRUCTIVE)
@pytest.mark.parametrize("typed", [None, "", "yes", "segments", "public.segmints"])
def test_a_click_without_the_table_s_name_changes_nothing(
    database: Database, migration: Migration, run: Runner, job: str, typed: str | None
):
    fill_and_swap(migration)
    before = table(database)

    result = run(job, run_config=None if typed is None else confirming(job, typed))

    assert not result.success
    assert f"expected 'public.segments', the table that this changes, got {typed or ''!r}" in failure_of(result)
    assert table(database) == before


@pytest.mark.parametrize("job", DESTRUCTIVE)
def test_the_table_s_name_is_asked_of_the_settings_and_not_of_a_constant(
    migration: Migration, run: Runner, monkeypatch: pytest.MonkeyPatch, job: str
):
    fill_and_swap(migration)
    monkeypatch.setenv("TARGET_TABLE", "sources")

    assert "expected 'public.sources'" in failure_of(run(job, run_config=confirming(job)))


def rollback_job() -> dg.JobDefinition:
    """For another process of Dagster's to find."""
    return defs.resolve_job_def("rollback_job")


def test_repeating_a_run_that_was_confirmed_does_not_confirm_it_again(
    database: Database, migration: Migration, instance: dg.DagsterInstance, run: Runner
):
    fill_and_swap(migration)
    confirmed = run.rollback()
    assert confirmed.success
    fill_and_swap(migration)
    before = table(database)

    with dg.execute_job(
        dg.reconstructable(rollback_job),
        instance,
        run_config=confirming("rollback_job"),
        reexecution_options=dg.ReexecutionOptions(parent_run_id=confirmed.run_id),
    ) as repeated:
        assert not repeated.success
        assert f"repeats run {confirmed.run_id[:8]}" in failure_of(repeated)
    assert table(database) == before


def test_a_confirmed_run_that_failed_may_be_repeated(migration: Migration, instance: dg.DagsterInstance, run: Runner):
    failed = run.rollback()
    assert not failed.success
    fill_and_swap(migration)

    with dg.execute_job(
        dg.reconstructable(rollback_job),
        instance,
        run_config=confirming("rollback_job"),
        reexecution_options=dg.ReexecutionOptions(parent_run_id=failed.run_id),
    ) as repeated:
        assert repeated.success
    assert read_status(migration).dimensions == 1_536


def test_the_next_migration_begins_only_for_a_run_that_names_its_model(
    database: Database, migration: Migration, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    run.migrate()
    run.retire()
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    before = table(database)

    refused = failure_of(run("expand_job"))

    assert "would be the next migration" in refused
    assert "resources.settings.config.begin_next_migration" in refused
    assert table(database) == before
    failure_of(run("expand_job", run_config=consenting(begin_next_migration="BAAI/bge-small-en-v1.5")))
    assert table(database) == before
    assert run("expand_job", run_config=consenting(begin_next_migration="hashing")).success
    assert read_status(migration).new_dimensions == 256


@pytest.mark.parametrize("job", [pytest.param("expand_job", marks=pytest.mark.thorough), "swap_job"])
def test_after_a_rollback_no_job_goes_forward_by_itself(
    database: Database, migration: Migration, run: Runner, job: str
):
    run.migrate()
    moment = rollback(migration).rolled_back
    before = table(database)

    refused = failure_of(run(job))

    assert f"rolled back to the old vectors at {moment}" in refused
    assert "resources.settings.config.forward_after_rollback" in refused
    assert table(database) == before
    assert run(job, run_config=consenting(forward_after_rollback=moment)).success


@pytest.mark.thorough
def test_the_whole_migration_at_once_stops_at_a_rollback(database: Database, settings: Settings, run: Runner):
    run.migrate()
    run.rollback()
    before = table(database)

    with pytest.raises(BgePipelineError, match=r"expand_job failed: search on .* was rolled back"):
        migrate_through_dagster(settings)

    assert table(database) == before
