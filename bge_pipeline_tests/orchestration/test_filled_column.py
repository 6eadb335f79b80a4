"""Partitions are of one column: the next migration finds none of them done, whichever road expanded and wherever it broke."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration import filled_column, partitions
from bge_pipeline.orchestration.filled_column import FilledColumn
from bge_pipeline.orchestration.run_history import never_materialized
from bge_pipeline.orchestration.sensors import embed_new_rows
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, checks_of, consenting, insert_segment

pytestmark = pytest.mark.pgvector


def tick(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        result = embed_new_rows.of(THE_TABLE)(context)
    if isinstance(result, dg.SkipReason):
        return str(result.skip_message)
    return f"requested {[request.job_name for request in result.run_requests or ()]}"


def forget(instance: dg.DagsterInstance) -> None:
    """As an instance of an earlier version, which kept no column."""
    key = THE_TABLE.kept_as("filled_column")
    with instance.daemon_cursor_storage.connect() as connection:
        connection.exec_driver_sql("DELETE FROM kvs WHERE key = %(key)s", {"key": key})
    assert filled_column.kept_column(instance, THE_TABLE) is None


@pytest.fixture
def finished(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first migration through Dagster, over; the settings name the next model."""
    run.migrate()
    assert run.retire().success
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    monkeypatch.setenv("KEEP_OLD_CURRENT", "off")


@pytest.fixture
def by_another_road(finished: None, database: Database) -> None:
    """`bge-pipeline expand` has begun the second migration."""
    settings = load_settings()
    assert expand(Migration(database, settings), configured_space(settings), begin_next=True).added


def materialize(instance: dg.DagsterInstance, key: str) -> list[str]:
    """Run a partition as the asset's page does; the checks that gave an answer."""
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey("backfilled_embeddings")}
    )
    result = job.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)
    assert result.success
    return checks_of(instance, result.run_id)


@pytest.mark.usefixtures("by_another_road")
def test_what_another_road_expanded_is_not_embedded_unasked_and_then_cut(instance: dg.DagsterInstance, run: Runner):
    assert "partitions were cut for another column: materialize schema_with_384_column" in tick(instance)

    assert run("expand_job").success

    assert never_materialized(instance, THE_TABLE) == KEYS
    assert "3 of 3 partitions have not been materialized" in tick(instance)
    assert [materialize(instance, key).count("quality_gate") for key in KEYS] == [0, 0, 1]
    assert "nothing is pending" in tick(instance)


@pytest.mark.usefixtures("by_another_road")
def test_a_backfill_that_is_launched_before_the_cut_counts(
    instance: dg.DagsterInstance, run: Runner, database: Database
):
    assert run("backfill_job", KEYS[0]).success

    assert never_materialized(instance, THE_TABLE) == KEYS[1:]
    assert "2 of 3 partitions have not been materialized" in tick(instance)
    assert run.backfill(KEYS[1], KEYS[2]).success
    insert_segment(database, 1_000)
    assert tick(instance) == "requested ['embed_pending_job']"


@pytest.mark.usefixtures("finished")
def test_an_expand_that_dies_behind_the_column_is_repeated_with_the_cut(
    instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    def dies(*_: object) -> None:
        raise BgePipelineError("the machine lost power")

    with monkeypatch.context() as patched:
        patched.setattr(partitions, "recut", dies)
        assert not run("expand_job", run_config=consenting(begin_next_migration="hashing")).success
    assert "partitions were cut for another column" in tick(instance)

    assert run("expand_job").success

    assert never_materialized(instance, THE_TABLE) == KEYS


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("job", ["expand_job", "schema_with_384_column"])
def test_the_sensor_waits_for_a_run_that_expands(instance: dg.DagsterInstance, job: str):
    whole = defs.resolve_implicit_global_asset_job_def()
    one = defs.resolve_job_def(job) if job == "expand_job" else whole.get_subset(asset_selection={dg.AssetKey(job)})
    instance.create_run_for_job(
        one,
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=None if job == "expand_job" else frozenset({dg.AssetKey(job)}),
    )

    assert "is queued or under way in run" in tick(instance)


def test_an_upgrade_in_the_middle_forgets_no_partition_and_cuts_none(
    instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    assert run("expand_job").success
    assert run("backfill_job", KEYS[0]).success
    forget(instance)
    assert never_materialized(instance, THE_TABLE) == KEYS[1:]
    monkeypatch.setattr(partitions, "recut", None)

    assert "2 of 3 partitions have not been materialized" in tick(instance)
    assert run("expand_job").success

    assert never_materialized(instance, THE_TABLE) == KEYS[1:]
    assert filled_column.kept_column(instance, THE_TABLE) is not None


@pytest.mark.thorough
@pytest.mark.parametrize("looks", [True, False], ids=["the sensor", "the run itself"])
def test_an_upgrade_after_a_migration_knows_the_next_one(
    instance: dg.DagsterInstance, run: Runner, finished: None, monkeypatch: pytest.MonkeyPatch, looks: bool
):
    forget(instance)
    if looks:
        assert "nothing is pending" in tick(instance)
    with monkeypatch.context() as patched:
        patched.setattr(partitions, "recut", lambda *_: 1 / 0)
        assert not run("expand_job", run_config=consenting(begin_next_migration="hashing")).success

    assert "partitions were cut for another column" in tick(instance)


def test_after_the_swap_by_another_road_the_partitions_stay_done(
    instance: dg.DagsterInstance, run: Runner, by_another_road: None, migration: Migration
):
    assert run("embed_pending_job").success
    assert run("swap_job").success

    assert "nothing is pending" in tick(instance)
    assert never_materialized(instance, THE_TABLE) == []
    assert run.rollback().success
    assert "nothing is pending" in tick(instance)
    kept = require_table(migration).new
    assert kept is not None
    assert kept.note is not None
    assert run("expand_job", run_config=consenting(forward_after_rollback=str(kept.note.rolled_back))).success
    assert never_materialized(instance, THE_TABLE) == []


def test_columns_are_told_apart_by_number_and_those_of_a_restored_table_by_their_space():
    column = FilledColumn(16_400, 7, "a")
    assert column.is_same_as(FilledColumn(16_400, 7, "a"))
    assert not column.is_same_as(FilledColumn(16_400, 8, "a"))
    assert column.is_same_as(FilledColumn(17_000, 6, "a"))
    assert not column.is_same_as(FilledColumn(17_000, 7, "b"))
