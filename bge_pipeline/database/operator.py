"""The operator of a table: one session-level advisory lock, and the session that holds it makes every change of schema."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg2.errors import UndefinedColumn, UndefinedObject, UndefinedTable
from sqlalchemy import Connection, TextClause, bindparam, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from bge_pipeline.database.catalog import missing_table, relation_exists
from bge_pipeline.database.connection import Database
from bge_pipeline.database.lock_holders import LockHolder, find_advisory_holders
from bge_pipeline.database.locks import short_transaction_on, with_lock_retries
from bge_pipeline.database.pooler import require_session
from bge_pipeline.database.sql import MAX_IDENTIFIER_BYTES, with_values
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ChangedMeanwhile, OperatorBusy

if TYPE_CHECKING:
    from bge_pipeline.settings import LockSettings, Settings

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_NAMESPACE = 0x6267_6531
"""`bge1`: the upper half of the lock's key, the table's oid is the lower half."""
_POLL_SECONDS = 0.5
_KEY = "(CAST(:namespace AS bigint) << 32) | CAST(CAST(:table AS regclass) AS oid)::bigint"
# Polled, never waited for in the server: a session that waits there holds a snapshot, for which index builds would wait.
_TRY = f"SELECT pg_try_advisory_lock({_KEY})"
_UNLOCK = f"SELECT pg_advisory_unlock({_KEY})"
_KEY_OF = f"SELECT {_KEY}"
_TAKE = f"SELECT pg_advisory_xact_lock({_KEY})"


class Operator:
    """A session that alone may change the schema of one table and the notes of its columns.

    The changes run on the very session that holds the lock: whoever lost the session has lost the right to change
    anything, however long the process slept.
    """

    def __init__(self, database: Database, target: TargetTable, act: str, *, wait_seconds: float) -> None:
        self.database = database
        self.target = target
        self._act = act
        self._wait_seconds = wait_seconds
        self._connection: Connection | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OperatorBusy: somebody else has it, and still had it after the time to wait.
        """
        connection = self.database.own_session(_application_name(self._act))
        try:
            self._take_lock(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _take_lock(self, connection: Connection) -> None:
        deadline, waiting = time.monotonic() + self._wait_seconds, False
        while not _answer(connection, _TRY, self.target)[0][0]:
            holder = _holder(connection, self.target)
            if time.monotonic() >= deadline:
                raise OperatorBusy(
                    f"{self._act}: another operator is at work on {self.target}: {holder or 'it has just ended'}",
                    state="this process changed nothing",
                    next_step="wait until it ends and run the same command again, or run it with --wait "
                    "(OPERATOR_WAIT_SECONDS); an operator that hangs is ended by "
                    f"SELECT pg_terminate_backend({holder.pid if holder else 'pid'})",
                )
            if not waiting:
                logger.info("%s: waiting for another operator of %s: %s", self._act, self.target, holder)
            waiting = True
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give the lock back, with the session."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            _answer(connection, _UNLOCK, self.target)
        except DBAPIError as error:
            logger.debug("the operator's session had ended, and its lock with it: %s", error.orig)
        connection.close()

    def change(self, settings: LockSettings, purpose: str, work: Callable[[Connection], Result]) -> Result:
        """Run `work` as one short transaction that never queues for long in front of the application.

        `work` reads the roles of the columns again before it changes anything: after a lost session another operator
        may have been here.

        Raises:
            LockNotAcquired: the table was never free; nothing was changed.
            OperatorBusy: the session was lost, and another operator has begun meanwhile.
            DatabaseUnavailable: the session was lost in the transaction; the roles of the columns say what became of it.
        """
        return with_lock_retries(
            self.database,
            settings,
            purpose,
            lambda watch: short_transaction_on(self.database, self._session(), settings, work, watch),
        )

    def _session(self) -> Connection:
        """The session that holds the lock; where it is gone, another one that takes the lock first."""
        if self._connection is not None:
            try:
                _answer(self._connection, "SELECT 1", self.target)
            except DBAPIError as error:
                logger.warning("%s: the operator's session was lost (%s); taking the lock again", self._act, error.orig)
                self.release()
        if self._connection is None:
            self.acquire()
        assert self._connection is not None
        return self._connection


_current: ContextVar[Operator | None] = ContextVar("operator", default=None)


@contextmanager
def operating(database: Database, settings: Settings, act: str) -> Iterator[Operator]:
    """Be the operator of the configured table for the length of the block; a block inside another is the same operator.

    Args:
        database: where the table is.
        settings: name the table, and how long to wait for another operator (OPERATOR_WAIT_SECONDS).
        act: what for, in a word: others are told it.

    Raises:
        SessionNotKept: a pooler stands in between that would not keep the session of the lock.
        OperatorBusy: another process, or another thread of this one, operates the table.
        ChangedMeanwhile: somebody took away what the block was working on.
    """
    target = TargetTable.from_settings(settings)
    outer = _current.get()
    if outer is not None and outer.database is database and outer.target == target:
        yield outer
        return
    require_session(database)
    with database.autocommit() as connection:
        if not relation_exists(connection, str(target)):
            raise missing_table(target)
    operator = Operator(database, target, act, wait_seconds=settings.operator_wait_seconds)
    operator.acquire()
    token = _current.set(operator)
    try:
        with naming_what_vanished(target, act):
            yield operator
    finally:
        _current.reset(token)
        operator.release()


@contextmanager
def naming_what_vanished(target: TargetTable, act: str) -> Iterator[None]:
    """Say in words that a column, index or table of the block was taken away by somebody else."""
    try:
        yield
    except ProgrammingError as error:
        if not isinstance(error.orig, (UndefinedColumn, UndefinedTable, UndefinedObject)):
            raise
        raise ChangedMeanwhile(
            f"{act}: another process changed {target} meanwhile: {str(error.orig).strip().splitlines()[0]}",
            state="what was committed before stays, the rest was not done",
            next_step="bge-pipeline status says where the migration stands",
        ) from error


def operator_lock_statement(target: TargetTable) -> TextClause:
    """The statement by which a transaction for review is the table's operator until it ends; lock_timeout bounds its wait."""
    return with_values(text(_TAKE).bindparams(bindparam("namespace", _NAMESPACE)), table=str(target))


def _holder(connection: Connection, target: TargetTable) -> LockHolder | None:
    ((key,),) = _answer(connection, _KEY_OF, target)
    with connection.begin():
        holders = find_advisory_holders(connection, key)
    return holders[0] if holders else None


def _answer(connection: Connection, query: str, target: TargetTable) -> Sequence[Any]:
    """The rows of a query about the lock of a table; the session is in no transaction afterwards."""
    with connection.begin():
        return connection.execute(text(query), {"namespace": _NAMESPACE, "table": str(target)}).all()


def _application_name(act: str) -> str:
    """What everybody may read in pg_stat_activity, whatever their rights: the act, the machine and the process."""
    name = f"bge-pipeline {act} (process {os.getpid()} on {socket.gethostname()})"
    return name.encode(errors="replace")[:MAX_IDENTIFIER_BYTES].decode(errors="ignore")
