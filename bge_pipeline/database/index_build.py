"""Building an index beside live traffic: memory, progress, and what to do about an invalid leftover."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from psycopg2 import Error as DriverError
from psycopg2.errors import DiskFull, InsufficientPrivilege, OutOfMemory
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.build_progress import BuildProgress, build_watcher
from bge_pipeline.database.connection import Database, lacks_shared_memory
from bge_pipeline.database.indexes import (
    MEBIBYTE,
    depends_on_column,
    drop_index,
    drop_index_statement,
    index_bytes,
    index_is_valid,
)
from bge_pipeline.database.lock_holders import (
    LockWatch,
    WaitLog,
    find_advisory_holders,
    naming_blockers,
    shown_holders,
)
from bge_pipeline.database.pooler import require_session
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError, ChangedMeanwhile, IndexBuildFailed

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_LEFTOVER_WAIT_MS = 1_000
_TURN_WAIT_SECONDS = 1.0
"""For the turn of a session that was ended, which the server gives back a moment later."""
_UNCUT_BYTES = 50
"""PostgreSQL cuts a name to make room for `_ccnew`; so much of ours is there in any case."""
_TURN = "hashtextextended(:name, 0)"
_REINDEX_LEFTOVERS = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = CAST(:table AS regclass) AND NOT i.indisvalid
  AND left(c.relname, :length) = :beginning AND c.relname ~ '_cc(new|old)[0-9]*$'
"""


@dataclass(frozen=True)
class BuildResult:
    """What a build did. `built` is False when a valid index of that name was there."""

    name: str
    built: bool
    seconds: float
    bytes: int
    maintenance_work_mem_mb: int


def build_concurrently(
    database: Database,
    target: TargetTable,
    name: str,
    statement: TextClause,
    *,
    column: str | None,
    memory_bytes: int = 0,
    workers: int | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildResult:
    """Build an index beside live traffic, unless a valid one of that name is there; an invalid leftover is replaced.

    Args:
        database: where the target table is.
        target: the table.
        name: of the index.
        statement: builds it.
        column: that the index is on, or whose rows it counts: an index of that name on another column is not ours.
            None: the name alone says enough.
        memory_bytes: what the build needs in maintenance_work_mem.
        workers: processes beside the first that may take part; None: as many as the server's own setting lets, but no more
            than half of the processors where the server is on this machine.
        on_progress: told how far the build is.

    Raises:
        IndexBuildFailed: the server could not; search is as it was.
        ChangedMeanwhile: an index of that name is on another column.
    """
    started = time.perf_counter()
    with _build_session(database, target, name) as connection:
        existing = index_is_valid(connection, target.schema, name)
        if existing is not None and column is not None and not depends_on_column(connection, target, name, column):
            raise ChangedMeanwhile(
                f"index {name} is there and is not on column {column!r} of {target}",
                state="the index was left as it is",
                next_step="bge-pipeline status says where the migration stands; rename the index if it is your own",
            )
        if existing:
            return BuildResult(name, False, 0.0, index_bytes(connection, target.schema, name), 0)
        if existing is False:
            logger.info("index %s is an invalid leftover of an interrupted build; building it again", name)
            _drop(database, connection, target.schema, name)
        megabytes = give_memory(connection, memory_bytes)
        _limit_workers(connection, database, workers)
        if database.give_way(connection):
            logger.info(
                "index %s is built with the processor time that nobody else wants; SESSION_PRIORITY=normal takes as much as "
                "everybody",
                name,
            )
        try:
            _execute_watched(database, connection, (target.schema, name), statement, on_progress)
        except BaseException as error:
            _remove_leftover(database, target, name, has_turn=not connection.invalidated)
            if isinstance(error, DBAPIError) and not error.connection_invalidated:
                raise _failure(name, error, memory_bytes) from error
            raise
        seconds = time.perf_counter() - started
        if not index_is_valid(connection, target.schema, name):
            raise IndexBuildFailed(f"index {name} is invalid after its build", next_step="run the same command again")
        return BuildResult(name, True, seconds, index_bytes(connection, target.schema, name), megabytes)


def rebuild_concurrently(
    database: Database, target: TargetTable, name: str, statement: TextClause, *, column: str
) -> None:
    """Make an index anew beside live traffic, without the entries of rows that have left it; build it if it is not there.

    Raises:
        IndexBuildFailed: the server could not.
    """
    build_concurrently(database, target, name, statement, column=column)
    with _build_session(database, target, name) as connection:
        beginning = name.encode()[:_UNCUT_BYTES].decode(errors="ignore")
        values = {"table": str(target), "beginning": beginning, "length": len(beginning)}
        for leftover in connection.execute(text(_REINDEX_LEFTOVERS), values).scalars().all():
            _drop(database, connection, target.schema, leftover)
        statement = target.sql("REINDEX INDEX CONCURRENTLY {index}", index=(target.schema, name))
        database.give_way(connection)
        try:
            with naming_blockers(database, connection, f"making index {name} anew"):
                _execute_in_thread(connection, statement)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise _failure(name, error, 0) from error


def _drop(database: Database, connection: Connection, schema: str, name: str) -> None:
    with naming_blockers(database, connection, f"dropping index {name}"):
        _execute_in_thread(connection, drop_index_statement(schema, name))


@contextmanager
def _build_session(database: Database, target: TargetTable, name: str) -> Iterator[Connection]:
    """A session that alone builds or drops the index of that name, and whose settings end with it."""
    require_session(database)
    with database.autocommit() as connection:
        turn = _turn(target, name)
        log = WaitLog(f"another process is building index {name}")
        # Polled: a session that waits inside PostgreSQL holds a snapshot, and the other's build would wait for that.
        while not _takes_turn(connection, turn):
            log(find_advisory_holders(connection, connection.execute(text(f"SELECT {_TURN}"), turn).scalar_one()))
            time.sleep(_POLL_SECONDS)
        try:
            yield connection
        finally:
            if not connection.invalidated:
                with suppress(
                    DBAPIError
                ):  # it goes with the session at the latest, which the server may end a moment later
                    connection.execute(text(f"SELECT pg_advisory_unlock({_TURN})"), turn)
                connection.invalidate()


def _turn(target: TargetTable, name: str) -> dict[str, str]:
    """What the turn goes by, for `_TURN`."""
    return {"name": f"{target}.{name}"}


def _takes_turn(connection: Connection, turn: dict[str, str]) -> bool:
    return bool(connection.execute(text(f"SELECT pg_try_advisory_lock({_TURN})"), turn).scalar_one())


def give_memory(connection: Connection, memory_bytes: int) -> int:
    """Raise maintenance_work_mem for this session to what the build needs; returns it in MB."""
    current = int(
        connection.execute(text("SELECT pg_size_bytes(current_setting('maintenance_work_mem'))")).scalar_one()
    )
    if memory_bytes > current:
        megabytes = math.ceil(memory_bytes / MEBIBYTE)
        try:
            connection.execute(memory_statement(megabytes))
        except DBAPIError as error:
            if not isinstance(error.orig, InsufficientPrivilege):
                raise
            logger.warning(
                "this role may not raise maintenance_work_mem to %d MB; ask for: ALTER ROLE ... SET maintenance_work_mem = %dMB",
                megabytes,
                megabytes,
            )
        else:
            current = megabytes * MEBIBYTE
    return current // MEBIBYTE


def memory_statement(megabytes: int) -> TextClause:
    """The statement that gives the session's index builds so much memory."""
    return text(f"SET maintenance_work_mem = '{megabytes}MB'")


def usable_processors() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limit_workers(connection: Connection, database: Database, asked: int | None) -> None:
    """Let as many processes take part as were asked for, or as leave half of this machine's processors to searches."""
    allowed = int(connection.execute(text("SHOW max_parallel_maintenance_workers")).scalar_one())
    if asked is None:
        asked = min(allowed, max(0, usable_processors() // 2 - 1)) if database.is_on_this_machine else allowed
    if asked != allowed:
        connection.execute(_workers_statement(asked))


def _workers_statement(workers: int) -> TextClause:
    return text(f"SET max_parallel_maintenance_workers = {workers:d}")


def _execute_watched(
    database: Database,
    connection: Connection,
    index: tuple[str, str],
    statement: TextClause,
    on_progress: Callable[[BuildProgress], None] | None,
) -> None:
    watch = build_watcher(database, connection, index[1], on_progress)
    try:
        _execute_in_thread(connection, statement, watch)
    except DBAPIError as error:
        if not lacks_shared_memory(error):
            raise
        logger.warning("too little shared memory for a parallel build; using one process: %s", str(error.orig).strip())
        _drop(database, connection, *index)
        connection.execute(_workers_statement(0))
        _execute_in_thread(connection, statement, watch)


def _execute_in_thread(connection: Connection, statement: TextClause, watch: Callable[[], None] = lambda: None) -> None:
    """Run a long statement in a thread, so that this one can report progress and take an interrupt."""
    failures: list[BaseException] = []
    ended = threading.Event()  # a thread that is joined as an interrupt comes counts as ended: bpo-45274

    def work() -> None:
        try:
            connection.execute(statement)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            failures.append(error)
        finally:
            ended.set()

    server_side = cast("RawConnection", connection.connection.dbapi_connection)
    thread = threading.Thread(target=work, name="index-build")
    try:
        thread.start()
        while not ended.wait(_POLL_SECONDS):
            watch()
    except BaseException:
        # Again and again: an interrupt may come before the server has the statement, which no cancelling reaches then.
        while thread.ident is not None and not ended.is_set():
            with suppress(DriverError):  # a session that has ended needs no cancelling
                server_side.cancel()
            ended.wait(_POLL_SECONDS)
        raise
    if failures:
        raise failures[0]


def _remove_leftover(database: Database, target: TargetTable, name: str, *, has_turn: bool) -> None:
    """Drop the unfinished index, unless a transaction of the application would have to end first.

    Without the turn it may be another's by now, or the server may still build it for a session that was cut off.
    """
    watch = LockWatch(database, first_look_seconds=_LEFTOVER_WAIT_MS / 2_000)
    try:
        with watch.running() as follow, database.autocommit() as connection:
            try:
                follow(connection)
                deadline = time.monotonic() + _TURN_WAIT_SECONDS
                while not (has_turn or _takes_turn(connection, _turn(target, name))):
                    if time.monotonic() > deadline:
                        logger.warning(
                            "index %s is left to the session that builds it, which may be our own still", name
                        )
                        return
                    time.sleep(_TURN_WAIT_SECONDS / 10)
                if index_is_valid(connection, target.schema, name) is False:
                    connection.execute(text(f"SET lock_timeout = '{_LEFTOVER_WAIT_MS}ms'"))
                    drop_index(connection, target.schema, name)
            finally:
                connection.invalidate()
    except (BgePipelineError, DBAPIError) as error:
        held = f"; it waited for {shown_holders(watch.holders)}" if watch.holders else ""
        logger.warning("the unfinished index %s could not be removed, the next run will: %s%s", name, error, held)


def _failure(name: str, error: DBAPIError, memory_bytes: int) -> IndexBuildFailed:
    state = "search is as it was"
    reason = str(error.orig).strip().splitlines()[0]
    if "maintenance_work_mem" in reason:
        megabytes = math.ceil(memory_bytes / MEBIBYTE)
        return IndexBuildFailed(
            f"index {name} needs about {megabytes} MB of maintenance_work_mem: {reason}",
            state=state,
            next_step=f"raise INDEX_MAX_MEMORY_MB or maintenance_work_mem to {megabytes} MB, or set fewer INDEX_LISTS",
        )
    next_step = "run the same command again"
    locks = re.search(r"max_(pred_)?locks_per_transaction", str(error.orig))
    if isinstance(error.orig, DiskFull):
        next_step = f"free space, then {next_step}"
    elif locks is not None:
        next_step = f"raise {locks[0]} (bge-pipeline plan counts the locks) and restart the server, then {next_step}"
    elif isinstance(error.orig, OutOfMemory):
        next_step = (
            "the server's machine had no more memory: lower INDEX_MAX_MEMORY_MB or maintenance_work_mem, or set "
            f"INDEX_BUILD_WORKERS=0, then {next_step}"
        )
    return IndexBuildFailed(f"index {name}: {reason}", state=state, next_step=next_step)
