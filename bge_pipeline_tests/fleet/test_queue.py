"""A run through Celery in seconds: one broker, one worker, one partition, without webserver and daemon."""

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.fleet.deployment import wait_for
from bge_pipeline_tests.fleet.queue import Queue
from bge_pipeline_tests.orchestration.conftest import KEYS

pytestmark = [pytest.mark.pgvector, pytest.mark.slow]


def test_a_partition_is_embedded_by_a_worker_that_takes_it_off_its_queue(queue: Queue, migration: Migration):
    queue.deployment.start("gpu-worker", "gpu")
    elsewhere = queue.launch("status_job", **{"dagster-celery/queue": "small"})
    run = queue.embed(KEYS[0])

    assert queue.end(run) == dg.DagsterRunStatus.SUCCESS
    assert read_status(migration).embedded == 100
    assert queue.deployment.tasks_of("gpu") == {run.run_id}
    assert queue.status(elsewhere) == dg.DagsterRunStatus.STARTING
    # A task of which the broker knows nothing is not taken for dead.
    health = queue.instance.run_launcher.check_run_worker_health
    assert wait_for(lambda: health(run).status == WorkerStatus.SUCCESS, 10)
    assert health(elsewhere).status == WorkerStatus.RUNNING
