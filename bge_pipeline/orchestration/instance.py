"""The Dagster home: writing it, the UI on top of it, and a migration through it in this process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import dagster as dg
from pydantic import SecretStr

from bge_pipeline.database.connection import Database
from bge_pipeline.errors import BgePipelineError, ConfigurationError
from bge_pipeline.orchestration.failures import was_interrupted
from bge_pipeline.orchestration.names import BACKFILLED, REPORT, SCHEMA, SWAPPED
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.pool import register_pool
from bge_pipeline.orchestration.progress import StepProgress, listening
from bge_pipeline.orchestration.storage import dagster_database_url, require_databases
from bge_pipeline.phases.verify import verify_nothing_pending
from bge_pipeline.settings import HomeSettings, SearchSettings, Settings

DEFAULT_PORT = 3000
DEFAULT_HOST = "127.0.0.1"

# Runs in this process report through the progress callback; Dagster's own lines stay in its event log.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

_ASKS_TO_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Names of signals; no system has all of them."""
# Windows interrupts a process by a break of its console, and only one that leads a group. Dagster takes it for Ctrl-C.
_INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)
_APART = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


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


def prepare_dagster_home(settings: HomeSettings) -> Path:
    """The folder for DAGSTER_HOME, with this project's dagster.yaml in it; one that a person has edited is left alone."""
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(files("bge_pipeline.orchestration").joinpath("dagster.yaml").read_text())
    return home


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings and this Dagster home. Holds passwords: not for a log."""
    variables = {"DAGSTER_HOME": str(prepare_dagster_home(settings)), "BGE_PIPELINE_HOME": str(settings.home)}
    for name in settings.model_fields_set - {"bge_pipeline_home"}:
        value = getattr(settings, name)
        if value is not None:
            variables[name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return variables


def _urls(settings: Settings) -> dict[str, str]:
    """Where the target table and Dagster's records are, the embedded server's URLs included. Holds passwords."""
    with Database.from_settings(settings) as database:
        return {
            "DATABASE_URL": database.url.render_as_string(hide_password=False),
            "DAGSTER_DATABASE_URL": dagster_database_url(settings).render_as_string(hide_password=False),
        }


def run_dev(settings: Settings, port: int = DEFAULT_PORT, host: str = DEFAULT_HOST) -> int:
    """Run `dagster dev` until it is interrupted; returns its exit status.

    This process holds the embedded PostgreSQL, so that it lives as long as Dagster does and stops after it. Dagster's
    processes get its URLs in their environment and need not start it themselves.

    Raises:
        ConfigurationError: something else listens on that port.
        DatabaseUnavailable: the database of the table, or that of Dagster's records, cannot be reached.
    """
    _require_free(host, port)
    require_databases(settings)
    variables = environment(settings) | _urls(settings)
    with _environment(variables), dg.DagsterInstance.get() as instance:
        register_pool(instance)
    command = ["-m", "dagster", "dev", "-m", "bge_pipeline.definitions", "-p", str(port), "-h", host]
    print(f"Dagster UI: http://{host}:{port}  (Ctrl-C stops it)", flush=True)  # noqa: T201
    with _passing_signals_on() as started:
        # In a session of its own, Dagster hears of Ctrl-C once, from here, and can end its processes in order.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore:Function `dev_command` is superseded", *command],
            env=os.environ | variables,
            start_new_session=True,
            creationflags=_APART,
        )
        started(process)
        return process.wait()


def _require_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}", next_step="bge-pipeline dev --port with a free one"
        ) from error


@contextmanager
def _passing_signals_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Turn the first signal that asks this process to end into an interrupt of the child that it is told of."""
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if not asked and children:
            children[0].send_signal(_INTERRUPT)
        asked.append(number)

    def started(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        if asked:
            child.send_signal(_INTERRUPT)

    numbers = [getattr(signal, name) for name in _ASKS_TO_END if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    from bge_pipeline.definitions import defs

    run_ids: list[str] = []

    # With its URLs, as these settings may mean the embedded server where `.env` names another.
    with _environment(environment(settings) | _urls(settings)), dg.DagsterInstance.get() as instance:
        keep_connections(instance)

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
        keys = known_keys(instance)
        for number, key in enumerate(keys, start=1):
            run("backfill_job", StepProgress(BACKFILLED, partition=number, partitions=len(keys)), key)
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
    with Database.from_settings(settings) as database:
        return verify_nothing_pending(database, settings).blocks_swap


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
        next_step="run the same command again; every phase resumes",
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
