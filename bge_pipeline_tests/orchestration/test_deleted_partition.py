"""A partition that somebody deletes in the UI while its run is at work: the run ends as it would, and no row is forgotten."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.sensors import rerun_failed_partitions
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner
from bge_pipeline_tests.support import ENCODER, make_writes_slow, scalar, wait_until, wrong_vectors

pytestmark = pytest.mark.pgvector


@contextmanager
def deleting(instance: dg.DagsterInstance, database: Database, *keys: str) -> Iterator[None]:
    """Partitions are deleted as soon as the first row of a run is embedded."""

    def delete() -> None:
        wait_until(lambda: scalar(database, "SELECT count(embedding_384) FROM segments") > 0, 60)
        for key in keys:
            instance.delete_dynamic_partition(str(THE_TABLE.partitions.name), key)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def expanded(database: Database, run: Runner, monkeypatch: pytest.MonkeyPatch) -> Database:
    assert run("expand_job").success
    make_writes_slow(database, 0.01)
    monkeypatch.setenv("BACKFILL_BATCH_ROWS", "10")
    return database


def embedded(database: Database) -> int:
    found: int = scalar(database, "SELECT count(embedding_384) FROM segments")
    return found


def said_by(result: dg.ExecuteInProcessResult) -> str:
    """What the failed step says."""
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    assert failed.step_failure_data.user_failure_data is not None
    return str(failed.step_failure_data.user_failure_data.description)


def test_its_rows_are_embedded_its_run_says_so_and_what_is_in_no_partition_is_not_forgotten(
    expanded: Database, settings: Settings, instance: dg.DagsterInstance, run: Runner
):
    with deleting(instance, expanded, KEYS[0], KEYS[1]):
        result = run("backfill_job", KEYS[0])
    assert known_keys(instance, THE_TABLE) == [KEYS[2]]
    assert f"{KEYS[0]}: deleted while a run of it was at work" in said_by(result)
    assert "embed_pending_job" in said_by(result)
    assert embedded(expanded) == 100
    skipped = rerun_failed_partitions.of(THE_TABLE)(dg.build_sensor_context(instance))
    assert isinstance(skipped, dg.SkipReason), "nothing is left to run again"

    assert run("backfill_job", KEYS[2]).success
    assert read_status(Migration(expanded, settings)).pending == 100
    assert run("embed_pending_job").success
    assert run("swap_job").success
    assert wrong_vectors(expanded, ENCODER, "embedding") == []


@pytest.mark.parametrize("deleted", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_range_that_lost_one_goes_on_with_those_that_are_left(
    expanded: Database, instance: dg.DagsterInstance, run: Runner, deleted: int
):
    with deleting(instance, expanded, KEYS[deleted]):
        result = run.backfill()
    assert f"{KEYS[deleted]}: deleted while a run of its range was at work" in said_by(result)
    assert embedded(expanded) >= 100
    for key in known_keys(instance, THE_TABLE):
        assert run("backfill_job", key).success
    assert run("embed_pending_job").success
    assert run("swap_job").success
    assert wrong_vectors(expanded, ENCODER, "embedding") == []
