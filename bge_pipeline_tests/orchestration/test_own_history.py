"""A history belongs to one table of one database: settings that name another are noticed before anything is run."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.sensors import embed_new_rows
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import Runner, confirming
from bge_pipeline_tests.support import execute, schema_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def turned(database: Database, run: Runner, monkeypatch: pytest.MonkeyPatch) -> str:
    """`segments` is migrated, and `.env` is turned to a legacy table beside it."""
    run.migrate()
    execute(database, "CREATE TABLE talks AS SELECT id, text, NULL::vector(1536) AS embedding FROM segments")
    execute(database, "ALTER TABLE talks ADD PRIMARY KEY (id)")
    monkeypatch.setenv("TARGET_TABLE", "talks")
    return "talks"


def refusal_of(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    return str(failure.description)


@pytest.mark.parametrize("job", ["expand_job", "embed_pending_job", "report_job"])
def test_another_table_is_refused_before_anything_is_done(database: Database, run: Runner, turned: str, job: str):
    before = schema_of(database, turned)

    result = run(job)

    assert not result.success
    assert "segments" in refusal_of(result)
    assert "and the settings name" in refusal_of(result)
    assert "DAGSTER_DATABASE_URL with an empty database" in refusal_of(result)
    assert schema_of(database, turned) == before


@pytest.mark.usefixtures("turned")
def test_the_graph_and_the_sensors_say_it_too(instance: dg.DagsterInstance, run: Runner):
    result = run("status_job")

    (found,) = result.get_asset_check_evaluations()
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "history and partitions here are those of" in str(found.description)
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        skipped = embed_new_rows.of(THE_TABLE)(context)
    assert isinstance(skipped, dg.SkipReason)
    assert "history and partitions here are those of" in str(skipped.skip_message)


def test_the_same_name_in_another_database_is_another_table(
    new_database_url: object, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    run("expand_job")
    assert callable(new_database_url)
    monkeypatch.setenv("DATABASE_URL", new_database_url())

    assert "in database 'bge_test_" in refusal_of(run("expand_job"))


def test_a_table_that_moved_is_adopted_by_whoever_types_its_name(
    settings: Settings, new_database_url: object, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    run("expand_job")
    assert callable(new_database_url)
    moved = new_database_url()
    assert str(settings.database_url) != moved
    monkeypatch.setenv("DATABASE_URL", moved)

    assert not run("adopt_table_job").success
    assert not run("expand_job").success
    assert run("adopt_table_job", run_config=confirming("adopt_table_job")).success

    assert run("expand_job").success
