"""A migration through Dagster in this process, so that the UI shows that very history: what the demo runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg

from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration.dagster_home import environment, in_environment, prepare_dagster_home, server_urls
from bge_pipeline.orchestration.failures import was_interrupted
from bge_pipeline.orchestration.names import BACKFILL_JOB, BACKFILLED, REPORT, SCHEMA, SWAPPED
from bge_pipeline.orchestration.own_history import adopt
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.progress import StepProgress, listening
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.verify import verify_nothing_pending
from bge_pipeline.settings import Settings

# Runs in this process report through the progress callback; Dagster's own lines stay in its event log.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class DagsterMigration:
    """A migration that Dagster ran.

    Attributes:
        home: the DAGSTER_HOME that holds its history.
        run_ids: its runs, in order.
        partitions: partitions of the backfill.
        report: the benchmark report as Markdown.
        figures: the report's figures.
    """

    home: Path
    run_ids: tuple[str, ...]
    partitions: int
    report: str
    figures: dict[str, Any]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "home": str(self.home),
            "run_ids": list(self.run_ids),
            "partitions": self.partitions,
            "figures": self.figures,
        }


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Let the instance hold its connections, as the webserver does, where it would open one for each event."""
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3_600, max_overflow=20)


def migrate_through_dagster(
    settings: Settings, *, on_progress: Callable[[StepProgress], None] | None = None
) -> DagsterMigration:
    """Run expand, every partition, swap and report in this process, so that the UI shows that very history.

    Args:
        settings: reach the runs through the environment of this process, which is put back at the end.
        on_progress: told as each step begins and while it runs.

    Raises:
        BgePipelineError: why a step failed; a further call resumes.
        KeyboardInterrupt: a signal ended a step; likewise.
    """
    # Loading the code location takes a second, which importers of this module need not wait for.
    from bge_pipeline.orchestration.code_location import code_location

    defs = code_location([THE_TABLE])

    run_ids: list[str] = []

    # With its URLs, as these settings may mean the embedded server where `.env` names another.
    with in_environment(environment(settings) | server_urls(settings)), dg.DagsterInstance.get() as instance:
        keep_connections(instance)
        with Migration.opened(settings) as migration:
            adopt(instance, THE_TABLE, migration)

        def run(job: str, progress: StepProgress, partition_key: str | None = None) -> dg.ExecuteInProcessResult:
            def listener(found: StepProgress) -> None:
                if on_progress is not None:
                    on_progress(replace(found, partition=progress.partition, partitions=progress.partitions))

            listener(progress)
            with listening(listener):
                result = defs.resolve_job_def(job).execute_in_process(
                    instance=instance, partition_key=partition_key, raise_on_error=False, run_config=_QUIET
                )
            run_ids.append(result.run_id)
            if not result.success:
                raise KeyboardInterrupt if was_interrupted(result.all_events) else _why_failed(job, result)
            return result

        run("expand_job", StepProgress(SCHEMA))
        keys = known_keys(instance, THE_TABLE)
        for number, key in enumerate(keys, start=1):
            run(BACKFILL_JOB, StepProgress(BACKFILLED, partition=number, partitions=len(keys)), key)
        if _backfill_is_due(settings):
            # Rows above the last partition, where the table has grown since it was cut.
            run("embed_pending_job", StepProgress(BACKFILLED))
        run("swap_job", StepProgress(SWAPPED))
        reported = run("report_job", StepProgress(REPORT))
        figures = {
            name: value.value for name, value in reported.asset_materializations_for_node(REPORT)[0].metadata.items()
        }
        return DagsterMigration(
            home=prepare_dagster_home(settings),
            run_ids=tuple(run_ids),
            partitions=len(keys),
            report=str(figures.pop("report")),
            figures=figures,
        )


def _backfill_is_due(settings: Settings) -> bool:
    with Migration.opened(settings) as migration:
        return verify_nothing_pending(migration).blocks_swap


def _why_failed(job: str, result: dg.ExecuteInProcessResult) -> BgePipelineError:
    """What the failed step or check said."""
    reasons = [str(event.message) for event in result.all_events if event.is_failure]
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            error = data.error
            while error is not None and error.cause is not None:
                error = error.cause
            described = data.user_failure_data.description if data.user_failure_data else None
            reasons = [described or (error.message.strip() if error else str(event.message))]
    return BgePipelineError(
        f"{job} failed: {reasons[-1]}",
        state=f"run {result.run_id} is in Dagster's history with its log",
        next_step="bge-pipeline benchmark" if job == "report_job" else "bge-pipeline migrate resumes",
    )
