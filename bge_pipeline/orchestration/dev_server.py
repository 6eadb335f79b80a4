"""`bge-pipeline dev`: the Dagster UI and daemon as one process that ends in order."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import dagster as dg
from prometheus_client import CollectorRegistry

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.orchestration.dagster_home import environment, for_dagsters_commands, in_environment, server_urls
from bge_pipeline.orchestration.dagster_metrics import DagsterMetrics
from bge_pipeline.orchestration.names import SWAPPED
from bge_pipeline.orchestration.own_history import foreign_table, told_foreign
from bge_pipeline.orchestration.pool import register_pool
from bge_pipeline.orchestration.report_server import browser_url, newest_report, serving_reports
from bge_pipeline.orchestration.served import ServedTable, served_tables
from bge_pipeline.orchestration.storage import require_databases
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.table_metrics import AllTables, TableMetrics
from bge_pipeline.settings import Settings
from bge_pipeline.telemetry.serving import serving_metrics

logger = logging.getLogger(__name__)

DEFAULT_PORT = 3000
DEFAULT_HOST = "127.0.0.1"
_ENV_FILE = Path(".env")
_LOOK_SECONDS = 2.0
_LAST_PORT = 65_535
_GROUP_PAGE = "/locations/bge_pipeline.definitions/asset-groups/{group}/lineage"
"""Of a table's assets, where a person begins."""

_ASKS_TO_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Names of signals; no system has all of them."""
# Windows interrupts a process by a break of its console, and only one that leads a group. Dagster takes it for Ctrl-C.
_INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)
_APART = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)

_ENDING_WITH_US = (
    "import ctypes, runpy, signal; ctypes.CDLL(None).prctl(1, signal.SIGINT); "
    "runpy.run_module('dagster', run_name='__main__', alter_sys=True)"
)
"""Runs Dagster as `-m dagster` does, and has Linux interrupt it when this process is killed (PR_SET_PDEATHSIG). Dagster's process
asks for that itself: this one has threads, so that nothing of Python may run between its fork and the exec."""
_DAGSTER = ["-c", _ENDING_WITH_US] if sys.platform == "linux" else ["-m", "dagster"]


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
    variables = environment(settings) | server_urls(settings)
    with in_environment(variables):
        tables = served_tables()
        with dg.DagsterInstance.get() as instance:
            for table in tables:
                _look_at(instance, table)
    with (
        serving_reports(settings.home / "reports", host, min(port + 1, _LAST_PORT)) as reports,
        _serving_metrics(settings, variables, tables),
    ):
        links = {
            "REPORTS_URL": settings.reports_url or reports,
            "DAGSTER_URL": settings.dagster_url or browser_url(host, port),
        }
        return _run_dagster(variables | links, tables, port, host, settings)


def _look_at(instance: dg.DagsterInstance, table: ServedTable) -> None:
    """Give the table's pool its limit, and say so where the history is another table's."""
    settings = table.settings()
    register_pool(instance, table.pool)
    with Migration.opened(settings) as migration:
        migration.database.require_answer()
        if foreign := foreign_table(instance, table, migration):
            logger.warning(
                "%s. Runs are refused; see the check migration_status of %s",
                told_foreign(*foreign),
                table.key(SWAPPED).to_user_string(),
            )


@contextmanager
def _serving_metrics(settings: Settings, variables: dict[str, str], tables: Sequence[ServedTable]) -> Iterator[None]:
    """Serve what the database and Dagster's records know, where METRICS_PORT is set; runs serve their own on the ports above."""
    if settings.metrics_port is None:
        yield
        return
    with ExitStack() as stack:
        registry = CollectorRegistry()
        with in_environment(variables):
            instance = stack.enter_context(dg.DagsterInstance.get())
            found = [TableMetrics(stack.enter_context(Migration.looked_at(table.settings()))) for table in tables]
        dagster = DagsterMetrics(instance, tables)
        registry.register(AllTables(found))
        registry.register(dagster)
        for metrics in (*found, dagster):
            stack.enter_context(metrics.keeping_up())
        stack.enter_context(serving_metrics(settings.metrics_host, settings.metrics_port, settings.home, registry))
        yield


def _run_dagster(
    variables: dict[str, str], tables: Sequence[ServedTable], port: int, host: str, settings: Settings
) -> int:
    command = [*_DAGSTER, "dev", "-m", "bge_pipeline.definitions", "-p", str(port), "-h", host]
    if settings.log_format == "json":
        command += ["--log-format", "json"]
    ui, home = browser_url(host, port), settings.home
    for table in tables:
        print(f"Dagster UI: {ui}{_GROUP_PAGE.format(group=table.group)}  (Ctrl-C stops it)", flush=True)  # noqa: T201
    if newest := newest_report(home / "reports"):
        print(f"newest benchmark report: {variables['REPORTS_URL']}/{newest.name}", flush=True)  # noqa: T201
    with _passing_signals_on() as started:
        # In a session of its own, Dagster hears of Ctrl-C once, from here, and can end its processes in order.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore:Function `dev_command` is superseded", *command],
            env=os.environ | for_dagsters_commands(variables),
            start_new_session=True,
            creationflags=_APART,
        )
        started(process)
        return _wait(process)


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Its exit status; meanwhile, say when `.env` is no longer what its settings were read from."""
    read = _changed_at(_ENV_FILE)
    while True:
        try:
            return process.wait(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if _changed_at(_ENV_FILE) != read:
                read = _changed_at(_ENV_FILE)
                logger.warning(
                    ".env has changed, and has no effect before bge-pipeline dev is started again: it is read once, at the start"
                )


def _changed_at(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None


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
