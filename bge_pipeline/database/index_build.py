"""Building an index beside live traffic: memory, progress, and what to do about an invalid leftover."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg2.errors import DiskFull, InsufficientPrivilege, OutOfMemory, ProgramLimitExceeded
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import MEBIBYTE, drop_index, index_is_valid
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import IndexBuildFailed

logger = logging.getLogger(__name__)

_PROGRESS = """
SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total FROM pg_stat_progress_create_index WHERE pid = :pid
"""


@dataclass(frozen=True)
class BuildProgress:
    """A look at pg_stat_progress_create_index; `fraction` is of the phase, None where the server does not say."""

    phase: str
    fraction: float | None


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
    memory_bytes: int = 0,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildResult:
    """Build an index beside live traffic, unless a valid one of that name is there; an invalid leftover is replaced.

    Raises:
        IndexBuildFailed: the server could not; the invalid leftover is gone and search is as it was.
    """
    with database.autocommit() as connection:
        existing = index_is_valid(connection, target.schema, name)
        if existing:
            return BuildResult(name, False, 0.0, _bytes(connection, target.schema, name), 0)
        if existing is False:
            logger.info("index %s is an invalid leftover of an interrupted build; building it again", name)
            drop_index(connection, target.schema, name)
        megabytes = _give_memory(connection, memory_bytes)
        started = time.perf_counter()
        try:
            _execute_watched(database, connection, (target.schema, name), statement, on_progress)
        except DBAPIError as error:
            _explain_failure(connection, target, name, error, memory_bytes)
        finally:
            connection.execute(text("RESET maintenance_work_mem"))
            connection.execute(text("RESET max_parallel_maintenance_workers"))
        seconds = time.perf_counter() - started
        if not index_is_valid(connection, target.schema, name):
            raise IndexBuildFailed(f"index {name} is invalid after its build", next_step="run the same command again")
        return BuildResult(name, True, seconds, _bytes(connection, target.schema, name), megabytes)


def _bytes(connection: Connection, schema: str, name: str) -> int:
    statement = text(
        "SELECT pg_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relname = :name"
    )
    return int(connection.execute(statement, {"schema": schema, "name": name}).scalar_one())


def _give_memory(connection: Connection, memory_bytes: int) -> int:
    """Raise maintenance_work_mem for this session to what the build needs; returns it in MB."""
    current = int(
        connection.execute(text("SELECT pg_size_bytes(current_setting('maintenance_work_mem'))")).scalar_one()
    )
    if memory_bytes > current:
        megabytes = math.ceil(memory_bytes / MEBIBYTE)
        try:
            connection.execute(
                text("SELECT set_config('maintenance_work_mem', :value, false)"), {"value": f"{megabytes}MB"}
            )
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
    workers = int(connection.execute(text("SHOW max_parallel_workers")).scalar_one())
    connection.execute(
        text("SELECT set_config('max_parallel_maintenance_workers', :n, false)"), {"n": str(min(workers, 8))}
    )
    return current // MEBIBYTE


def _execute_watched(
    database: Database,
    connection: Connection,
    index: tuple[str, str],
    statement: TextClause,
    on_progress: Callable[[BuildProgress], None] | None,
) -> None:
    try:
        with _Watcher(database, connection, on_progress):
            connection.execute(statement)
    except DBAPIError as error:
        # A parallel build keeps its graph in /dev/shm, which containers make 64 MB small.
        if "shared memory" not in str(error.orig):
            raise
        logger.warning("too little shared memory for a parallel build; using one process: %s", str(error.orig).strip())
        drop_index(connection, *index)
        connection.execute(text("SET max_parallel_maintenance_workers = 0"))
        with _Watcher(database, connection, on_progress):
            connection.execute(statement)


def _explain_failure(
    connection: Connection, target: TargetTable, name: str, error: DBAPIError, memory_bytes: int
) -> None:
    drop_index(connection, target.schema, name)
    state = "search is as it was; the unfinished index was removed"
    reason = str(error.orig).strip().splitlines()[0]
    megabytes = math.ceil(memory_bytes / MEBIBYTE)
    if isinstance(error.orig, (OutOfMemory, ProgramLimitExceeded)) or "maintenance_work_mem" in reason:
        raise IndexBuildFailed(
            f"index {name} needs about {megabytes} MB of maintenance_work_mem: {reason}",
            state=state,
            next_step=f"raise INDEX_MAX_MEMORY_MB or the server's maintenance_work_mem to {megabytes} MB, or set fewer INDEX_LISTS",
        ) from error
    if isinstance(error.orig, DiskFull):
        raise IndexBuildFailed(
            f"no disk space for index {name}: {reason}", state=state, next_step="free space, run again"
        ) from error
    raise IndexBuildFailed(f"index {name}: {reason}", state=state, next_step="run the same command again") from error


class _Watcher:
    """Reports the progress of the statement that `connection` runs, from a connection of its own."""

    def __init__(
        self, database: Database, connection: Connection, on_progress: Callable[[BuildProgress], None] | None
    ) -> None:
        self._database = database
        self._report = on_progress
        self._pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="index-progress", daemon=True)

    def __enter__(self) -> None:
        if self._report is not None:
            self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._report is not None
        try:
            with self._database.autocommit() as connection:
                while not self._done.wait(0.5):
                    row = connection.execute(text(_PROGRESS), {"pid": self._pid}).one_or_none()
                    if row is not None:
                        self._report(BuildProgress(row.phase, _fraction(row)))
        except DBAPIError as error:
            logger.warning("no progress of the index build can be shown: %s", str(error.orig).strip())


def _fraction(row: Any) -> float | None:
    done, total = (row.tuples_done, row.tuples_total) if row.tuples_total else (row.blocks_done, row.blocks_total)
    return done / total if total else None
