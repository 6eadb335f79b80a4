"""Serving metrics over HTTP: on METRICS_PORT or, where another process has it, on the next free one; found through a file.

Each process that serves writes `BGE_PIPELINE_HOME/metrics/<process>.json` in the form of Prometheus' `file_sd_configs`, so that
Prometheus finds all workers of a machine whatever their ports are, and removes it at its end.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.process import is_gone, this_process
from bge_pipeline.telemetry.metrics import REGISTRY

logger = logging.getLogger(__name__)

PORTS_TRIED = 100
_LAST_PORT = 65_535
FOLDER = "metrics"
"""In the data folder."""
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - what a person asked to listen on
_PROCESS = "__meta_bge_pipeline_process"
"""Label of a target. Prometheus drops what begins so once it has relabelled: each run would else make series of its own."""
_served = threading.Lock()
"""Held while this process serves: a block within another one, as a run within `dev`, adds nothing."""


@contextmanager
def serving_metrics(
    host: str, port: int | None, home: Path, registry: CollectorRegistry = REGISTRY, *, is_required: bool = False
) -> Iterator[int | None]:
    """Serve the registry for the length of the block. What prevents it is logged: work goes on without.

    Args:
        host: METRICS_HOST.
        port: METRICS_PORT, with which the search for a free one begins; None: nothing is served.
        home: the data folder.
        registry: what is served.
        is_required: raise what prevents it.

    Yields:
        The port, or None where nothing is served.

    Raises:
        ConfigurationError: it is required, and there is no such address, no right to the port, or no free one.
    """
    if port is None or not _served.acquire(blocking=False):
        yield None
        return
    try:
        started = None
        try:
            started = _start(host, port, registry)
        except ConfigurationError as error:
            if is_required:
                raise
            logger.warning("metrics are not served: %s", error.message)
        if started is None:
            yield None
            return
        bound, stop = started
        target = _announce(host, bound, home)
        try:
            yield bound
        finally:
            if target is not None:
                target.unlink(missing_ok=True)
            stop()
    finally:
        _served.release()


def _start(host: str, first: int, registry: CollectorRegistry) -> tuple[int, Callable[[], None]]:
    last = min(first + PORTS_TRIED, _LAST_PORT + 1) if first else 1
    for port in range(first, last):
        try:
            server, thread = start_http_server(port, host, registry)
        except (OSError, UnicodeError) as error:  # the latter of a name that none can be
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                continue
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                next_step="set METRICS_HOST to an address of this machine, and METRICS_PORT to a port that this user may take",
            ) from error
        logger.info("metrics: http://%s:%d/metrics", host, server.server_port)
        return server.server_port, partial(_stop, server, thread)
    raise ConfigurationError(
        f"no port from {first} to {last - 1} is free on {host}", next_step="set METRICS_PORT to a free one"
    )


def _stop(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


def _announce(host: str, port: int, home: Path) -> Path | None:
    """Write the file by which Prometheus finds this process; those of processes that were killed go."""
    folder, machine = home / FOLDER, socket.gethostname()
    reached = machine if host in _ANY_ADDRESS else f"[{host}]" if ":" in host else host
    target = folder / f"{machine}-{port}.json"
    facts = [{"targets": [f"{reached}:{port}"], "labels": {_PROCESS: this_process()}}]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.json"):
            if _is_left_behind(left):
                left.unlink(missing_ok=True)
        # Prometheus may read at any moment: it sees the whole file or none.
        written = target.with_suffix(".tmp")
        written.write_text(json.dumps(facts), encoding="utf-8")
        written.replace(target)
    except OSError as error:
        logger.warning("Prometheus cannot be told of port %d: %s", port, error)
        return None
    return target


def _is_left_behind(path: Path) -> bool:
    try:
        return is_gone(json.loads(path.read_text(encoding="utf-8"))[0]["labels"][_PROCESS])
    except (OSError, ValueError, LookupError):
        return False
