"""Writing vectors: binary COPY into a staging table, then one UPDATE of the rows that are still as they were read."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg2 import Error as DriverError
from psycopg2.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.binary_copy import run_copy, staged_vectors
from bge_pipeline.database.commit_size import CommitSize
from bge_pipeline.database.connection import Database, server_version
from bge_pipeline.database.ids import IdKind
from bge_pipeline.database.lock_holders import LockHolder, LockWatch, shown_holders
from bge_pipeline.database.locks import silence_statement
from bge_pipeline.database.pending_reader import PendingBatch
from bge_pipeline.database.pooler import require_session
from bge_pipeline.database.session_settings import settings_put_back
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import WRITING
from bge_pipeline.database.update_statement import COPY_INTO_STAGING, IS_THE_COLUMN, staging_table, update_template
from bge_pipeline.errors import ChangedMeanwhile
from bge_pipeline.telemetry.metrics import COMMIT_SECONDS

logger = logging.getLogger(__name__)

# synchronous_commit: a crash of the server may lose the last commits, and NULL then says that they are missing.
# enable_*: the staging table is small and has no statistics; the plan must stay one index lookup a row.
# lock_timeout: locked rows are skipped, but a trigger of the application may wait for others. Below deadlock_timeout
# (1 s by default), this session gives way before PostgreSQL would choose a victim, which could be the application.
_FOR_THE_BATCH = """
SET LOCAL synchronous_commit = off;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
"""
_SHORT_WAIT = "SET LOCAL lock_timeout = '300ms'; "
_SHORTER_WAIT = "SET LOCAL lock_timeout = '50ms'; "
"""Of the parts of a batch that has waited for as long as an application's lock may take to pass."""
_FIRST_LOOK_SECONDS = 0.1
"""Within that wait, at who is waited for."""

# What the caller's transaction does else is to last. No table is altered for which a deferred trigger of the application waits.
_FOR_THE_REST = (
    "SET CONSTRAINTS ALL IMMEDIATE",
    "SET LOCAL synchronous_commit TO DEFAULT",
    "SET LOCAL session_replication_role TO DEFAULT",
)

# Every transaction that writes tells our own trigger so, and leaves the application's out where that is asked for.
_WRITING = f"SET LOCAL {WRITING} = 'on'; "
_SKIP_TRIGGERS = "SET LOCAL session_replication_role = 'replica'; "

# PostgreSQL looks again for row versions that can be cleared away when the oldest transaction of the server, be it in another
# database, is another one; a VACUUM, of nothing here, makes it look at once.
_LOOK_ANEW = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS bge_pipeline_nothing ()",
    "VACUUM pg_temp.bge_pipeline_nothing",
)
_STARVED = 4
"""Times as long as it may, a commit holds the locks of its rows where processors are wanted by all: writers would wait for those
who need not."""
_MOST = 0.95
"""Share of a commit's rows that stayed in their page with which all is well."""


@dataclass(frozen=True)
class Stored:
    """Vectors that were committed.

    Attributes:
        rows: how many.
        in_page: of their rows those that stayed in their page, so that no index heard of them.
        gave_way: none was, since a trigger of the application waited for a lock of it.
    """

    rows: int
    in_page: int
    gave_way: bool = False

    def __add__(self, other: Stored) -> Stored:
        return Stored(self.rows + other.rows, self.in_page + other.in_page)


@dataclass(frozen=True)
class Destination:
    """The column that vectors are written into.

    Attributes:
        target: its table.
        column: its name, under which it is written.
        number: its number in the catalog, by which it is told from another that came by the name.
        id_kind: of the table.
        dimensions: of its vectors.
    """

    target: TargetTable
    column: str
    number: int
    id_kind: IdKind
    dimensions: int


@dataclass(frozen=True)
class CommitRules:
    """What holds for every commit.

    Attributes:
        max_lock_ms: for how long it may hold the locks of its rows.
        max_rows: most rows in it.
        skip_triggers: leave the application's triggers out.
    """

    max_lock_ms: float
    max_rows: int
    skip_triggers: bool = False


class TableLocked(Exception):
    """Somebody keeps writers off the whole table, for as long as a plain CREATE INDEX may take; nothing was written.

    Attributes:
        table: the one that is locked.
        holders: who does, where the server said so.
    """

    def __init__(self, table: TargetTable, holders: tuple[LockHolder, ...]) -> None:
        super().__init__(f"{table} is locked by {shown_holders(holders) or 'somebody else'}")
        self.table = table
        self.holders = holders


class VectorWriter:
    """Writes batches of vectors into one column; owns one connection, used by one thread."""

    def __init__(self, database: Database, destination: Destination, rules: CommitRules) -> None:
        self._database = database
        self._target = destination.target
        self._id_kind = destination.id_kind
        self._dimensions = destination.dimensions
        self._connection: Connection | None = None
        self._name = destination.column
        self._column = {
            "table": str(destination.target),
            "column": destination.column,
            "number": destination.number,
        }
        self._commit_size = CommitSize(rules.max_lock_ms, rules.max_rows)
        self._longest_seconds = _STARVED * rules.max_lock_ms / 1_000
        self._gives_way = True
        self._skip_triggers = rules.skip_triggers
        self._updates = {
            is_one: update_template(destination.id_kind, destination.target.key, of_partition=is_one)
            for is_one in (False, True)
        }
        self._settings = _FOR_THE_BATCH + _WRITING + (_SKIP_TRIGGERS if rules.skip_triggers else "")

    def pieces(self, batch: PendingBatch) -> Iterator[slice]:
        """The batch in pieces for a commit each, so that their locks are held no longer than they may be."""
        return self._commit_size.pieces(batch)

    def write(self, batch: PendingBatch, vectors: NDArray[np.float32], *, is_part: bool = False) -> Stored:
        """Commit the vectors of rows that are still pending and unchanged.

        A row that somebody else has locked is left pending, and so is a row whose text was edited since it was read, or is
        edited by a trigger of the application as its vector is written.

        Args:
            batch: n rows.
            vectors: float32 (n, dimensions), in the same order.
            is_part: of a batch that gave way: its triggers wait for locks no longer than 0.05 s, in place of 0.3 s.

        Raises:
            ChangedMeanwhile: the column of that name is not the one of that number; nothing was written.
            TableLocked: the table takes no vectors at all now.
        """
        try:
            return self._write(batch, vectors, _SHORTER_WAIT if is_part else _SHORT_WAIT)
        except DBAPIError as error:
            self.close()
            if not isinstance(error.orig, LockNotAvailable):
                raise
            self._require_unlocked(batch.partition or self._target)
            logger.debug("a trigger waited for a lock of the application; %d rows stay pending", len(batch))
            return Stored(0, 0, gave_way=True)

    def close(self) -> None:
        """Give the connection up, and the staging table with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write_within(self, connection: Connection, batch: PendingBatch, vectors: NDArray[np.float32]) -> Stored:
        """The same in a transaction of the caller's, which is to begin, and to commit, on that connection.

        Deferred constraints and triggers of the application have their say at once, as at the commit of any other batch.
        """
        connection.execute(staging_table(self._id_kind, self._dimensions, server_version(connection)))
        with settings_put_back(connection):
            stored = self._store(connection, batch, vectors, _SHORT_WAIT)
            connection.execute(text("; ".join(_FOR_THE_REST[: 3 if self._skip_triggers else 2])))
        return stored

    def _write(self, batch: PendingBatch, vectors: NDArray[np.float32], wait: str) -> Stored:
        connection = self._open()
        with connection.begin() as transaction:
            connection.execute(silence_statement())
            locked_at = time.perf_counter()
            stored = self._store(connection, batch, vectors, wait)
            transaction.commit()
        held_seconds = time.perf_counter() - locked_at
        self._commit_size.held(len(batch), held_seconds)
        COMMIT_SECONDS.observe(held_seconds)
        if stored.in_page < _MOST * stored.rows:
            _look_anew(connection)
        if self._gives_way and held_seconds > self._longest_seconds:
            self._gives_way = False
            self.close()
            logger.info(
                "a commit held the locks of its rows for %.0f ms: from now on the session that writes gives way to nobody",
                held_seconds * 1e3,
            )
        return stored

    def _store(self, connection: Connection, batch: PendingBatch, vectors: NDArray[np.float32], wait: str) -> Stored:
        run_copy(
            connection,
            COPY_INTO_STAGING,
            staged_vectors(self._id_kind, batch.ids, batch.versions, batch.digests, vectors),
        )
        # It runs the application's triggers, and so with the role's own settings; one message, one round trip.
        settings = self._settings + wait + self._database.sessions.roles_own_settings()
        table, values = self._target, self._column
        if batch.partition is not None:
            table, values = batch.partition, values | {"partition": str(batch.partition)}
        update = table.sql(settings + self._updates[batch.partition is not None], column=self._name)
        in_page = connection.execute(update, values).scalars().all()
        if not in_page:
            self._require_column(connection)
        return Stored(len(in_page) - in_page.count(None), in_page.count(True))

    def _require_column(self, connection: Connection) -> None:
        if not connection.execute(text(f"SELECT {IS_THE_COLUMN}"), self._column).scalar_one():
            raise ChangedMeanwhile(
                f"column {self._name!r} of {self._target} was exchanged or dropped by another process",
                state="every committed batch is kept, this one was not written",
                next_step="bge-pipeline status says where the migration stands",
            )

    def _require_unlocked(self, table: TargetTable) -> None:
        """See that it was a trigger that waited for a lock, on something else, and not the update, on the table."""
        # An update's lock without an update: no trigger fires, and a role that may write but one column has it.
        ask = table.sql("EXPLAIN UPDATE {table} SET {column} = NULL WHERE false", column=self._name)
        watch = LockWatch(self._database, first_look_seconds=_FIRST_LOOK_SECONDS)
        try:
            with watch.running() as follow, self._database.transaction() as connection:
                follow(connection)
                connection.execute(text(_SHORT_WAIT))
                connection.execute(ask)
        except DBAPIError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            raise TableLocked(table, watch.holders) from error

    def _open(self) -> Connection:
        if self._connection is None:
            require_session(self._database)
            connection = self._database.engine.connect()
            try:
                with connection.begin():
                    connection.execute(staging_table(self._id_kind, self._dimensions, server_version(connection)))
            except DBAPIError:
                connection.invalidate()
                connection.close()
                raise
            self._connection = connection
            self._gives_way = self._gives_way and self._database.give_way(connection)
        return self._connection


def _look_anew(connection: Connection) -> None:
    """Let the session see which row versions can be cleared away by now; VACUUM stands in no transaction."""
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.autocommit = True
    try:
        cursor = raw.cursor()
        for statement in _LOOK_ANEW:
            cursor.execute(statement)
        cursor.close()
    except DriverError as error:  # a broken connection shows at the next batch, which is tried again
        logger.debug("the session could not look anew: %s", error)
    finally:
        with suppress(DriverError):
            raw.autocommit = False
