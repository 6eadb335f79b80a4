"""What `celery --app bge_pipeline.orchestration.celery_app worker` runs: the tasks of the instance's launcher.

Broker, result backend and all else is read from `run_launcher` in DAGSTER_HOME's dagster.yaml, where webserver and daemon
have it from too, so that they cannot differ.
"""

from functools import cache
from typing import Any

import dagster as dg
from celery import Celery
from celery.signals import task_failure
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.orchestration.celery_run_launcher import QueueRunLauncher
from bge_pipeline.orchestration.own_tags import own_tag
from bge_pipeline.orchestration.workers import WORKER_TAG
from bge_pipeline.process import is_gone

_NOT_BEGUN = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING}


@cache
def celery_app() -> Celery:
    """The Celery application of the Dagster instance.

    Raises:
        ConfigurationError: the instance does not launch runs through Celery.
    """
    with dg.DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        if not isinstance(launcher, QueueRunLauncher):
            raise ConfigurationError(
                f"expected {QueueRunLauncher.__name__} as run_launcher of DAGSTER_HOME, got {type(launcher).__name__}",
                next_step="copy deploy/celery/dagster.yaml to DAGSTER_HOME",
            )
        create_execute_job_task(launcher.celery)
        create_resume_job_task(launcher.celery)
        return launcher.celery


def report_failure(task_id: str, exception: BaseException, **_: Any) -> None:
    """Mark the run of a failed task as failed at once.

    That is a task whose process was killed, for want of memory say. A run that another worker has in hand, as where a task
    was delivered twice, is left alone.
    """
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(task_id)
        if run is None:
            return
        worker = own_tag(run, WORKER_TAG)
        is_lost = run.status == dg.DagsterRunStatus.STARTED and worker is not None and is_gone(worker)
        if run.status in _NOT_BEGUN or is_lost:
            instance.report_run_failed(run, f"The Celery task of this run failed: {exception}")


task_failure.connect(report_failure, weak=False)


def __getattr__(name: str) -> Celery:
    """`app`, for which Celery asks; made then, as importing a module asks for no Dagster instance."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return celery_app()
