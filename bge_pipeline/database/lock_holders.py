"""Who is in the way: the sessions that hold the locks another session waits for, in words a person can act on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.statement_text import shown_statement
from bge_pipeline.errors import BgePipelineError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at a wait that may be long, and before the first: shorter waits are nobody's business."""
_HIDDEN = "<insufficient privilege>"
"""What pg_stat_activity shows in place of the statement of a session that the role may not see."""
_PREPARED = 0
"""The process number that pg_blocking_pids gives for a prepared transaction, which has no session."""

_SESSIONS = """
SELECT a.pid, a.usename::text AS role, NULLIF(a.application_name, '') AS application, host(a.client_addr) AS address,
       to_char(COALESCE(a.xact_start, a.backend_start), 'YYYY-MM-DD HH24:MI:SS TZ') AS since, a.state,
       NULLIF(a.query, '') AS statement
FROM pg_stat_activity a WHERE a.pid = ANY(:pids) ORDER BY COALESCE(a.xact_start, a.backend_start), a.pid
"""
_PREPARED_TRANSACTIONS = """
SELECT gid, owner::text AS role, to_char(prepared, 'YYYY-MM-DD HH24:MI:SS TZ') AS since
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 3
"""
_ON_TABLE = """
SELECT DISTINCT l.pid FROM pg_locks l
WHERE l.locktype = 'relation' AND l.relation = to_regclass(:table) AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.mode <> 'AccessShareLock'
"""
_SHUTTING_OUT = """
SELECT l.pid FROM pg_locks l
WHERE l.locktype = 'relation' AND l.relation = to_regclass(:table) AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.mode = 'AccessExclusiveLock'
"""
_ADVISORY = """
SELECT DISTINCT l.pid FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.classid = ((CAST(:key AS bigint) >> 32) & 4294967295)::oid AND l.objid = (CAST(:key AS bigint) & 4294967295)::oid
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True)
class LockHolder:
    """A session, or a prepared transaction, that holds a lock; what the server does not tell this role is None.

    Attributes:
        pid: of its server process; 0 for a prepared transaction.
        role: the database role.
        application: its application_name.
        address: where it connects from; None over a Unix socket.
        since: when its transaction began, or else the session.
        state: as in pg_stat_activity: `active`, `idle in transaction` ...
        statement: what it runs or ran last, shortened and without literals.
        is_hidden: whether the server keeps state and statement from this role.
    """

    pid: int
    role: str | None = None
    application: str | None = None
    address: str | None = None
    since: str | None = None
    state: str | None = None
    statement: str | None = None
    is_hidden: bool = False

    def __str__(self) -> str:
        name = f"pid {self.pid}" if self.pid else f"prepared transaction {self.application!r}"
        parts = [name, self.application if self.pid else None]
        parts += [f"role {self.role}" if self.role else None, f"from {self.address}" if self.address else None]
        parts += [f"since {self.since}" if self.since else None, self.state]
        if self.is_hidden:
            parts.append("what it runs is not shown to this role: GRANT pg_read_all_stats TO it shows that")
        elif self.statement and self.state != "idle":
            parts.append(self.statement if self.state == "active" else f"last statement {self.statement}")
        return ", ".join(part for part in parts if part)


def shown_holders(holders: Sequence[LockHolder]) -> str:
    """The first holders in words, and how many there are beside them."""
    words = "; ".join(str(holder) for holder in holders[:3])
    return f"{words}; and {len(holders) - 3} more" if len(holders) > 3 else words


def find_blockers(connection: Connection, pid: int) -> tuple[LockHolder, ...]:
    """Who holds, or is queued for, the lock that the session of that process waits for now; empty if it waits for none."""
    pids = connection.execute(text("SELECT pg_blocking_pids(:pid)"), {"pid": pid}).scalar_one()
    return describe_sessions(connection, pids)


def find_holders(connection: Connection, table: str) -> tuple[LockHolder, ...]:
    """Who holds a lock on the table (qualified, quoted) that goes with writing or is stronger, this session apart."""
    return describe_sessions(connection, connection.execute(text(_ON_TABLE), {"table": table}).scalars().all())


def find_shutting_out(connection: Connection, table: str) -> tuple[LockHolder, ...]:
    """Who keeps even readers off the table (qualified, quoted), by a lock that is held or waited for."""
    return describe_sessions(connection, connection.execute(text(_SHUTTING_OUT), {"table": table}).scalars().all())


def find_advisory_holders(connection: Connection, key: int) -> tuple[LockHolder, ...]:
    """Who holds the advisory lock of that 64-bit key."""
    return describe_sessions(connection, connection.execute(text(_ADVISORY), {"key": key}).scalars().all())


def describe_sessions(connection: Connection, pids: Sequence[int]) -> tuple[LockHolder, ...]:
    """Sessions by the numbers of their processes, those with the oldest transactions first."""
    if not pids:
        return ()
    rows = connection.execute(text(_SESSIONS), {"pids": sorted(set(pids))}).all()
    holders = [
        LockHolder(
            pid=row.pid,
            role=row.role,
            application=row.application,
            address=row.address,
            since=row.since,
            state=row.state,
            statement=None if row.statement in (None, _HIDDEN) else shown_statement(row.statement),
            is_hidden=row.statement == _HIDDEN,
        )
        for row in rows
    ]
    if _PREPARED in pids:
        found = connection.execute(text(_PREPARED_TRANSACTIONS)).all()
        holders += [LockHolder(_PREPARED, row.role, row.gid, since=row.since) for row in found]
    return tuple(holders)


class LockWatch:
    """Looks, beside a session that may wait for a lock, at who holds it.

    Args:
        database: where to ask, on a connection of its own.
        first_look_seconds: how long a block may run before the first look; later ones follow less and less
            often, at last every LOOK_SECONDS.
        tell: told of the holders at each look that finds some, in the watch's thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        first_look_seconds: float = LOOK_SECONDS,
        tell: Callable[[tuple[LockHolder, ...]], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._first_look_seconds = first_look_seconds
        self._tell = tell
        self.holders: tuple[LockHolder, ...] = ()

    @contextmanager
    def running(self) -> Iterator[Callable[[Connection], None]]:
        """Watch the session of the connection that the block gives to what it gets; looks until the block ends."""
        ended, ready, pids = threading.Event(), threading.Event(), list[int]()

        def follow(connection: Connection) -> None:
            # Asked of the server, as a pool of sessions tells the driver a number of its own.
            pids.append(int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one()))

        def look_on(connection: Connection) -> None:
            seconds = self._first_look_seconds
            while not ended.wait(seconds):
                if pids:
                    self._look(connection, pids[0])
                seconds = min(2 * seconds, LOOK_SECONDS)

        def look_again() -> None:
            while not ended.is_set():
                try:
                    with self._database.autocommit() as connection:
                        ready.set()
                        look_on(connection)
                except (BgePipelineError, SQLAlchemyError) as error:
                    logger.debug("who holds a lock could not be asked: %s", error)
                    ready.set()
                    ended.wait(LOOK_SECONDS)

        thread = threading.Thread(target=look_again, name="lock-watch")
        try:
            thread.start()
            # A wait may be shorter than it takes to connect.
            ready.wait(LOOK_SECONDS)
            yield follow
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()

    def _look(self, connection: Connection, pid: int) -> None:
        found = find_blockers(connection, pid)
        if found:
            self.holders = found
            self._tell(found)


class WaitLog:
    """Says in the log who is waited for: when a wait is first seen, and again when others are in the way."""

    def __init__(self, what: str, level: int = logging.INFO) -> None:
        self._what = what
        self._level = level
        self._told: frozenset[int] = frozenset()

    def __call__(self, holders: tuple[LockHolder, ...]) -> None:
        """Take note of who is in the way now."""
        pids = frozenset(holder.pid for holder in holders)
        if pids and not pids <= self._told:
            logger.log(self._level, "%s: waiting for %s", self._what, shown_holders(holders))
        self._told = pids


@contextmanager
def naming_blockers(database: Database, connection: Connection, what: str) -> Iterator[None]:
    """Say in the log, while the block runs a statement on `connection`, whom it waits for.

    Args:
        database: where to ask, on another connection.
        connection: in autocommit.
        what: the statement in words.
    """
    with LockWatch(database, tell=WaitLog(what)).running() as follow:
        follow(connection)
        yield
