"""Retire: drop the old column; after it there is no way back."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database, lacks_shared_memory
from bge_pipeline.database.dependents import find_bound
from bge_pipeline.database.index_build import give_memory
from bge_pipeline.database.indexes import MEBIBYTE, build_memory_bytes, indexes_on
from bge_pipeline.database.journal import record
from bge_pipeline.database.locks import in_short_transaction, with_short_lock_wait
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.partitions import most_rows, stored_tables
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.quarantine import drop_quarantine_statement
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.table_lock import lock_out_maintenance
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import trigger_function_statement
from bge_pipeline.errors import IndexBuildFailed, PhaseError
from bge_pipeline.phases.consent import require_asked
from bge_pipeline.phases.exchange import lock_for_exchange
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.old_vectors import no_longer_not_null
from bge_pipeline.phases.state import MigrationState, read_state, require_table
from bge_pipeline.settings import IndexSettings, LockSettings, Settings
from bge_pipeline.telemetry.observed import observed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetireResult:
    """What retire did; `dropped_column` is None when the column was gone already, `notices` is what a person must know."""

    table: str
    dropped_column: str | None
    table_bytes_before: int
    table_bytes_after: int
    rewritten: bool
    notices: tuple[str, ...] = ()

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@observed("retire")
def retire(migration: Migration, *, reclaim: bool = False, seen: MigrationState | None = None) -> RetireResult:
    """Drop the old column and its indexes, in one short transaction.

    PostgreSQL gives the space back as rows are rewritten. `reclaim` rewrites the table at once with VACUUM FULL,
    which locks out readers and writers for as long as it takes.

    Args:
        migration: of the table.
        reclaim: rewrite the table.
        seen: what a person was asked about, or else it is read before another operator is waited for: a column that has become
            the old one meanwhile is not dropped.

    Raises:
        ChangedMeanwhile: there is such a column.
        PhaseError: the columns are not swapped yet, or something still reads the old one.
        IndexBuildFailed: `reclaim` would need more memory than INDEX_MAX_MEMORY_MB, and nothing was dropped; or the
            server could not rewrite the table, whose old column is gone then.
        LockNotAcquired: the table was never free for LOCK_TIMEOUT_MS.
        OperatorBusy: another process changes the table's schema now.
    """
    seen = seen if seen is not None else require_table(migration)
    with migration.operating("retire") as operator:
        return _retire(operator, migration.settings, seen, reclaim=reclaim)


def _retire(operator: Operator, settings: Settings, seen: MigrationState, *, reclaim: bool) -> RetireResult:
    database, target = operator.database, operator.target
    with database.autocommit() as connection:
        state = read_state(connection, target)
        require_asked(target, seen.previous, state.previous)
        memory = _rewrite_memory_bytes(connection, settings, state) if reclaim else 0
        before = table_bytes(connection, target)
        bound = find_bound(connection, state.table, state.previous.name) if state.previous is not None else []
    if state.phase not in ("swapped", "retired"):
        raise PhaseError(
            f"{target} is in phase {state.phase}: search still reads the old column",
            state="nothing was changed",
            next_step="bge-pipeline migrate"
            if target.condition is None
            else "nothing: the old column of a part of a table (TARGET_WHERE) is that of the other rows, too",
        )
    if bound:
        raise PhaseError(
            f"these still read the old vectors: {', '.join(str(dependent) for dependent in bound)}",
            state="nothing was dropped",
            next_step="drop them or create them again on the new column, then run the same command",
        )
    with database.autocommit() as connection:
        require_privileges(connection, state.table)
    if state.previous is not None:
        previous = state.previous.name

        def drop_column(connection: Connection) -> None:
            lock_for_exchange(connection, state)
            connection.execute(trigger_function_statement(target, target.embedding_column))
            connection.execute(target.sql("ALTER TABLE {table} DROP COLUMN {previous}", previous=previous))
            # After the table's lock is held: no statement of the application may be inside the old trigger.
            connection.execute(drop_quarantine_statement(target.companion))

        operator.change(settings, "retire: drop the old column", drop_column)
    if reclaim:
        with database.autocommit() as connection:
            tables = stored_tables(connection, target)
        for table in tables:
            _rewrite(database, settings, table, memory)
    with database.autocommit() as connection:
        after = table_bytes(connection, target)
    note = state.previous.note if state.previous is not None else None
    notices = (no_longer_not_null(target.embedding_column),) if note is not None and note.not_null else ()
    result = RetireResult(str(target), state.previous.name if state.previous else None, before, after, reclaim, notices)
    record(database, target, "retire", result.as_metadata())
    return result


def _rewrite_memory_bytes(connection: Connection, settings: IndexSettings, state: MigrationState) -> int:
    """What the largest vector index that stays needs to be built again, which is what rewriting the table does.

    Raises:
        IndexBuildFailed: that is more than INDEX_MAX_MEMORY_MB.
    """
    needed, rows = 0, most_rows(connection, state.table.target)
    ceiling = settings.index_max_memory_mb * MEBIBYTE if settings.index_max_memory_mb else None
    for column in state.table.columns.values():
        if column == state.previous or column.dimensions is None:
            continue
        for index in indexes_on(connection, state.table.oid, column.number):
            memory = build_memory_bytes(index.definition, column.dimensions, rows)
            if ceiling is not None and memory > ceiling:
                if index.method == "hnsw":  # slower with less, but built
                    memory = ceiling
                else:
                    raise IndexBuildFailed(
                        f"index {index.name}, built again as the table is rewritten, needs about "
                        f"{math.ceil(memory / MEBIBYTE)} MB of maintenance_work_mem, and INDEX_MAX_MEMORY_MB is "
                        f"{settings.index_max_memory_mb}",
                        state="nothing was dropped",
                        next_step="raise INDEX_MAX_MEMORY_MB, or run the same command without --reclaim",
                    )
            needed = max(needed, memory)
    return needed


def _rewrite(database: Database, settings: LockSettings, target: TargetTable, memory_bytes: int) -> None:
    """VACUUM FULL, in a session with the memory that its index builds need."""
    purpose = "retire: rewrite the table"

    def rewrite(*, in_parallel: bool) -> None:
        def prepare(connection: Connection) -> None:
            give_memory(connection, memory_bytes)
            if not in_parallel:
                connection.execute(text("SET max_parallel_maintenance_workers = 0"))
            # Autovacuum is sent away first, which takes longer than the strong lock is waited for.
            in_short_transaction(database, settings, purpose, lambda other: lock_out_maintenance(other, target))

        statement = target.sql("VACUUM (FULL, ANALYZE) {table}")
        with_short_lock_wait(database, settings, purpose, statement, prepare=prepare)

    try:
        try:
            rewrite(in_parallel=True)
        except DBAPIError as error:
            if not lacks_shared_memory(error):
                raise
            logger.warning("too little shared memory for parallel builds; using one process: %s", error.orig)
            rewrite(in_parallel=False)
    except DBAPIError as error:
        raise IndexBuildFailed(
            f"the table could not be rewritten: {str(error.orig).strip().splitlines()[0]}",
            state="the old column is dropped and search is as it was; the table has not given its space back",
            next_step="bge-pipeline retire --reclaim, when the server has what it lacked",
        ) from error
