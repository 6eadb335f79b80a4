"""Whether a connection keeps its backend. A pooler that lends one for each transaction is found out before anything changes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.session import MARKER
from bge_pipeline.errors import SessionNotKept

logger = logging.getLogger(__name__)

_ROUNDS = 8
"""A busy pooler may give a connection the same backend again by luck, but not so often. One where nothing looks like one."""
_MARK = text(f"SELECT set_config('{MARKER}', :marker, false)")
_UNMARK = text(f"SELECT set_config('{MARKER}', '', false) WHERE current_setting('{MARKER}', true) = :marker")
_LOOK = text(f"SELECT pg_backend_pid() AS pid, current_setting('{MARKER}', true) AS marker")


@dataclass(frozen=True)
class _Backend:
    """Whom a statement met: the process, and the marker that it holds."""

    pid: int
    marker: str | None


def require_session(database: Database) -> None:
    """Refuse to begin a change where a connection does not keep its backend; asked once for each `Database`.

    Temporary tables, advisory locks and settings of a session would be left on a backend that the application uses
    next, and be missing on the one that our next statement meets.

    Raises:
        SessionNotKept: says what to connect to instead; nothing was changed.
    """
    refusal = session_obstacle(database)
    if refusal is not None:
        raise refusal


def session_obstacle(database: Database) -> SessionNotKept | None:
    """The error with which every change would be refused on this connection, None where a session is kept.

    Raises:
        DatabaseUnavailable: the server cannot be reached.
    """
    if database.sessions.kept is None:
        with database.reachable():
            evidence = _evidence_of_sharing(database)
        if evidence is not None:
            logger.debug("%s: %s", database, evidence)
        database.sessions.kept = evidence is None
    if database.sessions.kept:
        return None
    return SessionNotKept(
        f"{database} is a pooler that lends a server connection for one transaction or statement: expected one "
        "connection to keep one server process, with its temporary table, locks and settings",
        state="nothing was changed",
        next_step=f"set DATABASE_URL to {_what_to_connect_to(database.url)}; search, status and plan work as it is",
    )


def _evidence_of_sharing(database: Database) -> str | None:
    """What shows that backends are shared: one that two open connections meet, or that a connection lost.

    An idle connection holds no backend of such a pooler, so that a transaction on another one takes it away.
    """
    marker = uuid.uuid4().hex
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as idle:
        try:
            idle.execute(_MARK, {"marker": marker})
            own = _look(idle)
            for _ in range(1 if database.sessions.is_direct(idle) else _ROUNDS):
                with _transaction(database, idle) as found:
                    if found is None:
                        return "it allows no transactions"
                    other, met = found
                    if met.pid == own.pid or met.marker == marker:
                        other.execute(_UNMARK, {"marker": marker})
                        return f"two connections met process {met.pid}"
                    again = _look(idle)
                if again != own or again.marker != marker:
                    return f"one connection met process {own.pid} and then {again.pid}"
            return None
        finally:
            _unmark(idle, marker)


@contextmanager
def _transaction(database: Database, idle: Connection) -> Iterator[tuple[Connection, _Backend] | None]:
    """Another connection in a transaction, and whom it met; None where the pooler ends a connection that begins one."""
    for _ in range(2):
        with database.engine.connect() as other:
            try:
                met = _look(other)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                _look(idle)  # the server itself answers
                continue
            yield other, met
            other.commit()
            return
    yield None


def _look(connection: Connection) -> _Backend:
    row = connection.execute(_LOOK).one()
    return _Backend(row.pid, row.marker)


def _unmark(connection: Connection, marker: str) -> None:
    """Take the marker off the backend that holds it, which may be another one by now."""
    for _ in range(_ROUNDS):
        if connection.execute(_UNMARK, {"marker": marker}).first() is not None:
            return


def _what_to_connect_to(url: URL) -> str:
    host = url.host or ""
    if host.endswith(".pooler.supabase.com"):
        return f"port 5432 of {host}, which pools sessions, or to the direct connection db.<project>.supabase.co:5432"
    if "-pooler." in host:
        return f"{host.replace('-pooler.', '.', 1)}, which is the server without its pooler"
    return "the server itself (its own host and port, usually 5432), or to a pool with pool_mode = session"
