"""The command that serves the metrics of the table: an exporter beside the workers, for as long as it runs."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry, generate_latest

from bge_pipeline.cli.invocation import app, opened
from bge_pipeline.phases.table_metrics import TableMetrics
from bge_pipeline.telemetry.serving import serving_metrics

DEFAULT_PORT = 9_464
"""Where METRICS_PORT names none: the port that OpenTelemetry gives exporters for Prometheus."""


@app.command("metrics")
def metrics_command(
    once: Annotated[bool, typer.Option("--once", help="Print them once, in the form that Prometheus reads.")] = False,
) -> None:
    """Serve to Prometheus what the database knows of a migration: rows, workers on all machines, lag, locks. Changes nothing."""
    with opened(for_looks=True) as migration:
        settings, table, registry = migration.settings, TableMetrics(migration), CollectorRegistry()
        registry.register(table)
        if once:
            table.look()
            typer.echo(generate_latest(registry).decode(), nl=False)
            return
        port = DEFAULT_PORT if settings.metrics_port is None else settings.metrics_port
        with (
            table.keeping_up(),
            serving_metrics(settings.metrics_host, port, settings.home, registry, is_required=True),
        ):
            _wait_for_the_end()


def _wait_for_the_end() -> None:
    """Until Ctrl-C or SIGTERM, which here is how the command ends well."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        asked.wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
