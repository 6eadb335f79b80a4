"""A real PgBouncer in front of the tests' server, and what an application finds on the connections behind it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy.engine import URL

from bge_pipeline_tests.support import wait_until

_SBIN = "/usr/sbin:/usr/local/sbin"
SERVERS = 4
"""Connections that the pooler keeps to the server: few, so that an application meets each of them."""

# PgBouncer gives the listed ones to each client anew; those of a transaction are shown as the last one had them.
_NOT_DEFAULT = """
SELECT name, setting FROM pg_settings
WHERE source = 'session' AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone')
  AND NOT starts_with(name, 'transaction_')
"""
_LEFT_BEHIND = """
SELECT 'advisory lock', count(*)::text FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
HAVING count(*) > 0
UNION ALL
SELECT 'temporary table', relname::text FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'
UNION ALL
SELECT 'marker', current_setting('bge_pipeline.session', true)
WHERE current_setting('bge_pipeline.session', true) <> ''
"""


@contextmanager
def pgbouncer(server_url: URL, mode: str, **options: str) -> Iterator[URL]:
    """The address of a PgBouncer with that pool mode in front of the server; skips where there is none.

    `options` are lines of its configuration.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with tempfile.TemporaryDirectory(prefix="bge-pgbouncer-") as made, socket.create_server(("127.0.0.1", 0)) as free:
        folder, port = Path(made), free.getsockname()[1]
        folder.chmod(0o755)
        free.close()
        _configure(folder, server_url, port, mode, options)
        with (folder / "log").open("wb") as log, _running(program, folder, server_url, log):
            wait_until(lambda: _listens(port))
            yield server_url.set(host="127.0.0.1", port=port, query={})


def behind(url: URL, database: str | None) -> list[tuple[Any, ...]]:
    """What is not as a new connection would find it, on every connection that the pooler keeps to that database.

    Asked as an application would: in transactions that are open at once, so that each has a connection of its own.
    """
    dsn = url.set(drivername="postgresql", database=database).render_as_string(hide_password=False)
    found: dict[int, list[tuple[Any, ...]]] = {}
    with ExitStack() as opened:
        for _ in range(SERVERS):
            connection = psycopg2.connect(dsn, application_name="application")
            opened.callback(connection.close)
            cursor = connection.cursor()
            cursor.execute("SELECT pg_backend_pid()")
            ((pid,),) = cursor.fetchall()
            cursor.execute(_NOT_DEFAULT)
            found[pid] = cursor.fetchall()
            cursor.execute(_LEFT_BEHIND)
            found[pid] += cursor.fetchall()
    assert len(found) == SERVERS, "the application did not meet every connection of the pooler"
    return sorted({fact for facts in found.values() for fact in facts})


def _configure(folder: Path, server_url: URL, port: int, mode: str, options: dict[str, str]) -> None:
    host = server_url.host or server_url.query.get("host") or "127.0.0.1"
    users = folder / "users"
    users.write_text(f'"{server_url.username}" "{server_url.password or ""}"\n')
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": str(users),
        "pool_mode": mode,
        "default_pool_size": str(SERVERS),
        "query_wait_timeout": "20",
    } | options
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={host} port={server_url.port or 5432}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in lines.items())
    )
    for file in folder.iterdir():
        file.chmod(0o644)


@contextmanager
def _running(program: str, folder: Path, server_url: URL, log: Any) -> Iterator[None]:
    """The process, as the owner of the server's socket where this one is root, as which PgBouncer refuses to run."""
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        server = Path(str(server_url.query.get("host") or "/nonexistent")) / f".s.PGSQL.{server_url.port or 5432}"
        status = server.stat() if server.exists() else None
        nobody = 65_534
        owner = {
            "user": status.st_uid if status is not None and status.st_uid else nobody,
            "group": status.st_gid if status is not None and status.st_gid else nobody,
            "extra_groups": [],
        }
    process = subprocess.Popen([program, folder / "pgbouncer.ini"], stdout=log, stderr=log, **owner)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        time.sleep(0.05)
        return False
    return True
