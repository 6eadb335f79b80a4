"""Who else is there: a task delivered twice, a worker of other code or another model, one that is killed or told to end."""

import os
import shutil
import signal
from pathlib import Path

import dagster as dg
import psutil
import pytest

import bge_pipeline
from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.run_history import attempts_at, unmaterialized
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline_tests.fleet.deployment import wait_for
from bge_pipeline_tests.fleet.encoded import COUNTING, FILE, SECONDS, encoded
from bge_pipeline_tests.fleet.queue import Queue
from bge_pipeline_tests.orchestration.conftest import KEYS
from bge_pipeline_tests.support import ENCODER, pending_ids, wrong_vectors
from bge_pipeline_tests.written import count_writes, written

pytestmark = [pytest.mark.pgvector, pytest.mark.celery]

SLOW = {SECONDS: "0.5"}
"""Seconds of a batch of ten rows: five for a partition."""


@pytest.fixture
def counted(database: Database, queue: Queue) -> Path:
    """Where workers note what they encode; the table notes what they write."""
    count_writes(database)
    return Path(os.environ[FILE])


def begun(queue: Queue, run: dg.DagsterRun, database: Database) -> None:
    """Wait until a run has committed something."""
    wait_for(lambda: queue.status(run) == dg.DagsterRunStatus.STARTED and written(database)[0] > 0, 60)


def test_a_task_that_the_broker_delivers_twice_is_executed_once(queue: Queue, database: Database, counted: Path):
    for name in ("gpu1", "gpu2"):
        queue.deployment.start("gpu-worker", name, options=COUNTING, **SLOW)
    run = queue.embed(KEYS[0])
    begun(queue, run, database)

    queue.send(run)
    wait_for(lambda: all(queue.deployment.tasks_of(name) == {run.run_id} for name in ("gpu1", "gpu2")), 30)

    assert queue.end(run) == dg.DagsterRunStatus.SUCCESS
    assert "Ignoring a duplicate run" in queue.told(run)
    assert (written(database), encoded(counted)) == ((100, 100), 100)


def test_the_same_task_on_two_workers_at_one_instant_writes_every_row_once(
    queue: Queue, database: Database, counted: Path
):
    run = queue.embed(KEYS[0])
    queue.send(run)
    for name in ("gpu1", "gpu2"):
        queue.deployment.start("gpu-worker", name, options=COUNTING, **SLOW)

    wait_for(lambda: all(queue.deployment.tasks_of(name) == {run.run_id} for name in ("gpu1", "gpu2")), 60)
    queue.end(run)
    wait_for(lambda: written(database) == (100, 100), 30)

    # Both may have begun before either had said so: then they share the rows, or make some vectors for nothing.
    assert 100 <= encoded(counted) <= 200
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_a_worker_whose_model_differs_is_refused_by_the_column_and_writes_nothing(
    queue: Queue, database: Database, counted: Path
):
    queue.deployment.start("gpu-worker", "other", options=COUNTING, EMBEDDING_DIMENSIONS="256")

    refused = queue.embed(KEYS[0])

    assert queue.end(refused) == dg.DagsterRunStatus.FAILURE
    assert "dimensions: 384 != 256" in queue.told(refused)
    assert len(pending_ids(database)) == 300
    assert KEYS[0] in unmaterialized(queue.instance, THE_TABLE).failed


def test_a_worker_with_other_code_that_does_not_know_the_job_fails_the_run_at_once(
    queue: Queue, database: Database, counted: Path, tmp_path: Path
):
    other = tmp_path / "other-version"
    shutil.copytree(Path(bge_pipeline.__file__).parent, other / "bge_pipeline")
    names = other / "bge_pipeline/orchestration/names.py"
    names.write_text(names.read_text().replace('BACKFILL_JOB = "backfill_job"', 'BACKFILL_JOB = "embed_job"'))
    queue.deployment.start("gpu-worker", "other", PYTHONPATH=str(other))
    failed = queue.embed(KEYS[0])

    assert queue.end(failed) == dg.DagsterRunStatus.FAILURE
    assert "Could not load job definition" in queue.told(failed)
    queue.deployment.kill("other")
    queue.deployment.start("gpu-worker", "gpu", options=COUNTING)
    assert queue.end(queue.embed(KEYS[0])) == dg.DagsterRunStatus.SUCCESS
    assert written(database) == (100, 100)


def test_a_run_whose_process_is_killed_is_failed_by_its_worker_which_takes_the_next(
    queue: Queue, database: Database, counted: Path
):
    queue.deployment.start("gpu-worker", "gpu", options=COUNTING, **SLOW)
    run = queue.embed(KEYS[0])
    begun(queue, run, database)

    (process,) = psutil.Process(queue.deployment.pid("gpu")).children()
    os.kill(process.pid, signal.SIGKILL)

    assert queue.end(run, 20) == dg.DagsterRunStatus.FAILURE
    assert "The Celery task of this run failed: Worker exited prematurely: signal 9 (SIGKILL)" in queue.told(run)
    before = written(database)[0]
    assert 0 < before < 100
    assert queue.end(queue.embed(KEYS[0])) == dg.DagsterRunStatus.SUCCESS
    assert written(database) == (100, 100)
    assert 100 <= encoded(counted) <= 140


def test_a_run_that_a_person_terminates_is_cancelled_and_keeps_what_it_wrote(
    queue: Queue, database: Database, counted: Path
):
    queue.deployment.start("gpu-worker", "gpu", options=COUNTING, **SLOW)
    run = queue.embed(KEYS[0])
    begun(queue, run, database)

    assert queue.instance.run_launcher.terminate(run.run_id)

    assert queue.end(run, 30) == dg.DagsterRunStatus.CANCELED
    assert 0 < written(database)[0] < 100
    assert attempts_at(queue.instance, THE_TABLE, [KEYS[0]])[KEYS[0]][-1].was_cancelled
    assert queue.end(queue.embed(KEYS[1])) == dg.DagsterRunStatus.SUCCESS


def test_a_worker_that_is_told_to_end_finishes_its_run(queue: Queue, database: Database, counted: Path):
    queue.deployment.start("gpu-worker", "gpu", options=COUNTING, **SLOW)
    run = queue.embed(KEYS[0])
    begun(queue, run, database)

    os.kill(queue.deployment.pid("gpu"), signal.SIGTERM)

    assert queue.end(run) == dg.DagsterRunStatus.SUCCESS
    assert (written(database), encoded(counted)) == ((100, 100), 100)


def test_a_broker_that_lost_everything_fails_no_run_that_is_at_work(queue: Queue, database: Database, counted: Path):
    queue.deployment.start("gpu-worker", "gpu", options=COUNTING, **SLOW)
    run = queue.embed(KEYS[0])
    begun(queue, run, database)

    queue.deployment.kill("redis")
    shutil.rmtree(queue.deployment.broker_folder)
    queue.deployment.start("redis")

    assert queue.end(run) == dg.DagsterRunStatus.SUCCESS
    assert queue.end(queue.embed(KEYS[1])) == dg.DagsterRunStatus.SUCCESS
    assert (written(database), encoded(counted)) == ((200, 200), 200)
