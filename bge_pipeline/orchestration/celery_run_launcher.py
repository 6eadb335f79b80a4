"""Runs as tasks of Celery: dagster-celery's launcher, in which neither a lost answer nor a lost tag fails a healthy run."""

import warnings

import dagster as dg
from celery.canvas import Signature

# What every launcher answers with, dagster-celery's too, has no public name.
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

# dagster-celery registers its task anew with each run.
warnings.filterwarnings("ignore", message="Task name 'execute_job' is already registered")

_ENDED_BADLY = {"FAILURE", "REVOKED"}


class QueueRunLauncher(CeleryRunLauncher):  # type: ignore[misc]
    """Starts each run as a Celery task on the queue of its tag `dagster-celery/queue`.

    The task bears the run's id, so that it can be found and ended even where the daemon was killed just after it had
    sent it. Whether a process is at work is told by its heartbeat in the table's journal, for which the sensor
    `rerun_failed_partitions` looks: a broker that has forgotten a task is no reason to fail its run.
    """

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Failed only where Celery says so. CeleryRunLauncher takes a task of which it knows nothing for failed."""
        state = self.celery.AsyncResult(run.run_id).state
        if state in _ENDED_BADLY:
            return CheckRunHealthResult(WorkerStatus.FAILED, f"The Celery task of this run is in state {state}.")
        return CheckRunHealthResult(WorkerStatus.SUCCESS if state == "SUCCESS" else WorkerStatus.RUNNING)

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run as Ctrl-C does, after which it is cancelled, keeps what it committed, and is not run again."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        self.celery.control.revoke(run_id, terminate=True, signal="SIGINT")
        return True

    def _launch_celery_task_run(self, run: dg.DagsterRun, task_signature: Signature, routing_key: str) -> None:
        self._instance.add_run_tags(run.run_id, {DAGSTER_CELERY_TASK_ID_TAG: run.run_id})
        super()._launch_celery_task_run(run, task_signature.set(task_id=run.run_id), routing_key)
