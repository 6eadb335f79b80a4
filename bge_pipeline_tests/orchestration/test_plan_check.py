"""The plan in the UI: seen before anything is done to the table, without a model, and red where the swap would refuse."""

from collections.abc import Callable

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration import resources
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner
from bge_pipeline_tests.support import execute, schema_of

pytestmark = pytest.mark.pgvector

Check = Callable[[], dg.AssetCheckEvaluation]
PLAN = dg.AssetCheckKey(dg.AssetKey("schema_with_384_column"), "plan")


@pytest.fixture
def check(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Executes the check by itself, as its button in the UI does; a model would not load."""

    def not_to_be_loaded(*_: object) -> None:
        raise AssertionError("the plan loads no model")

    def execute_check() -> dg.AssetCheckEvaluation:
        with monkeypatch.context() as patched:
            patched.setattr(resources, "open_service", not_to_be_loaded)
            result = job.execute_in_process(instance=instance, raise_on_error=False)
        assert result.success
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation

    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(), asset_check_selection={PLAN})
    return execute_check


def test_a_table_with_nothing_in_the_way_passes_and_says_how_large_the_work_is(database: Database, check: Check):
    before = schema_of(database)

    found = check()

    assert found.passed
    assert "300 of 300 rows are to be embedded" in str(found.description)
    assert found.metadata["pending"].value == 300
    assert found.metadata["disk_bytes"].value > 300 * 384 * 4
    assert schema_of(database) == before


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE VIEW shown AS SELECT id, embedding FROM segments", "view shown"),
        ("CREATE PUBLICATION told FOR TABLE segments (id, embedding)", "publication told"),
        (
            """
            CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TRIGGER noted AFTER UPDATE OF embedding ON segments FOR EACH ROW EXECUTE FUNCTION noted()
            """,
            "trigger noted",
        ),
    ],
)
def test_what_would_make_the_swap_refuse_is_red_before_the_column_is_added(
    database: Database, check: Check, statement: str, named: str
):
    execute(database, statement)

    found = check()

    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.ERROR
    assert f"the swap will refuse: {named}" in str(found.description)


def test_what_a_person_should_look_at_is_amber(database: Database, check: Check):
    execute(
        database,
        "CREATE FUNCTION found() RETURNS bigint LANGUAGE plpgsql AS "
        "'BEGIN RETURN (SELECT count(embedding) FROM segments); END'",
    )

    found = check()

    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert "mentions: function found()" in str(found.description)


def test_the_time_is_told_once_it_has_been_measured_and_not_made_up_before(check: Check, run: Runner):
    before = check()
    run("expand_job")
    run("backfill_job", KEYS[0])

    after = check()

    assert "backfill_seconds" not in before.metadata
    assert "the time is not known before a first partition is embedded" in str(before.description)
    assert after.metadata["backfill_seconds"].value > 0
    assert "200 of 300 rows are to be embedded" in str(after.description)
    assert "texts/s of the last backfill" in str(after.description)


def test_expanding_asks_it_too_and_is_not_stopped_by_it(database: Database, run: Runner):
    execute(database, "CREATE VIEW shown AS SELECT id, embedding FROM segments")

    result = run("expand_job")

    assert result.success
    assert [evaluation.check_name for evaluation in result.get_asset_check_evaluations()] == ["plan"]
