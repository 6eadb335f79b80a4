"""A broker and a table that is ready to be filled: what workers need, without webserver and daemon."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg
from dagster._core.launcher import LaunchRunContext
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from bge_pipeline.definitions import defs
from bge_pipeline_tests.fleet.deployment import Deployment, wait_for
from bge_pipeline_tests.fleet.origin import code_of


@dataclass(frozen=True)
class Queue:
    """A deployment of which the broker runs, and Dagster's records as its daemon sees them."""

    deployment: Deployment
    instance: dg.DagsterInstance

    def launch(self, job: str, **tags: str) -> dg.DagsterRun:
        """Send a run to its queue as the daemon does, once it has taken it off Dagster's own."""
        run = self.instance.create_run_for_job(
            defs.resolve_job_def(job),
            tags=tags,
            status=dg.DagsterRunStatus.STARTING,
            job_code_origin=code_of(job),
        )
        self.send(run)
        return run

    def embed(self, key: str) -> dg.DagsterRun:
        """Send a run of one partition."""
        return self.launch("backfill_job", **{"dagster/partition": key, "dagster-celery/queue": "gpu"})

    def send(self, run: dg.DagsterRun) -> None:
        """Send a run, perhaps for the second time."""
        self.instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))

    def status(self, run: dg.DagsterRun) -> dg.DagsterRunStatus:
        """Of a run, now."""
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status

    def end(self, run: dg.DagsterRun, seconds: float = 90) -> dg.DagsterRunStatus:
        """Its status, once it has ended."""
        wait_for(lambda: self.status(run) in FINISHED_STATUSES, seconds)
        return self.status(run)

    def told(self, run: dg.DagsterRun) -> str:
        """All messages of its log, and why its steps failed."""
        lines = []
        for entry in self.instance.all_logs(run.run_id):
            lines.append(entry.message or entry.user_message)
            if entry.dagster_event is not None and entry.dagster_event.is_step_failure:
                lines.append(entry.dagster_event.step_failure_data.error_display_string)
        return "\n".join(lines)
