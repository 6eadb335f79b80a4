"""psycopg2 connections, one for each thread, that recover from a failed transaction, a dropped backend and a fork."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakSet

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR
from psycopg2.extensions import connection as PlainConnection  # noqa: N812

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


class Connection(PlainConnection):  # type: ignore[misc]
    """A psycopg2 connection whose `with` block ends with the error that broke it, not with one about rolling it back."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self.closed:
            super().__exit__(kind, error, trace)


class ThreadConnections:
    """Opens a connection for each thread that asks, and gives it the same one while that works."""

    def __init__(self, url: URL) -> None:
        # Not as a string: libpq reads no + as a space, and of a parameter that is repeated the last alone.
        self._arguments, parameters = url.get_dialect()().create_connect_args(url)
        self._parameters = {"fallback_application_name": "bge-pipeline", "client_encoding": "UTF8", **parameters}
        self._own = _OfThread()
        self._open: WeakSet[Connection] = WeakSet()
        self._process = os.getpid()
        self._lock = threading.Lock()

    def get(self) -> Connection:
        """This thread's connection, ready for the next statement.

        Raises:
            psycopg2.OperationalError: the server cannot be reached.
        """
        own = self._own
        if own.connection is not None and own.process == os.getpid() and _is_usable(own.connection):
            return own.connection
        connection: Connection = psycopg2.connect(*self._arguments, **self._parameters, connection_factory=Connection)
        own.connection, own.process = connection, os.getpid()
        with self._lock:
            self._forget_parents()
            self._open.add(connection)
        return connection

    def close(self) -> None:
        """Close the connections of all threads of this process."""
        with self._lock:
            self._forget_parents()
            connections = list(self._open)
            self._open.clear()
        for connection in connections:
            connection.close()

    def _forget_parents(self) -> None:
        """To close one in a forked process would end the session that the parent works in."""
        if self._process != os.getpid():
            self._open, self._process = WeakSet(), os.getpid()


class _OfThread(threading.local):
    """A thread's connection, and the process that opened it: a forked one must not talk on its parent's."""

    connection: Connection | None = None
    process = 0


def _is_usable(connection: Connection) -> bool:
    """Whether the server answers; rolls a failed transaction back. One in progress is left to its owner."""
    if connection.closed:
        return False
    try:
        if connection.get_transaction_status() == TRANSACTION_STATUS_INERROR:
            connection.rollback()
        if connection.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            _ping(connection)
    except (psycopg2.OperationalError, psycopg2.InterfaceError):
        connection.close()
        return False
    return not connection.closed


def _ping(connection: Connection) -> None:
    was = connection.autocommit
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        if not connection.closed:
            connection.autocommit = was
