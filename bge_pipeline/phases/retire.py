"""Retire: drop the old column; after it there is no way back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.connection import Database
from bge_pipeline.database.dependents import find_bound
from bge_pipeline.database.journal import record
from bge_pipeline.database.locks import in_short_transaction, with_short_lock_wait
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.quarantine import drop_quarantine_statement
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import trigger_function_statement
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.state import read_state
from bge_pipeline.settings import Settings


@dataclass(frozen=True)
class RetireResult:
    """What retire did; `dropped_column` is None when the column was gone already."""

    table: str
    dropped_column: str | None
    table_bytes_before: int
    table_bytes_after: int
    rewritten: bool

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def retire(database: Database, settings: Settings, *, reclaim: bool = False) -> RetireResult:
    """Drop the old column and its indexes, in one short transaction.

    PostgreSQL gives the space back as rows are rewritten. `reclaim` rewrites the table at once with VACUUM FULL,
    which locks out readers and writers for as long as it takes.

    Raises:
        PhaseError: the columns are not swapped yet, or something still reads the old one.
        LockNotAcquired: the table was never free for LOCK_TIMEOUT_MS.
    """
    target = TargetTable.from_settings(settings)
    with database.autocommit() as connection:
        state = read_state(connection, target)
        before = table_bytes(connection, target)
        bound = find_bound(connection, state.table, state.previous.name) if state.previous is not None else []
    if state.phase not in ("swapped", "retired"):
        raise PhaseError(
            f"{target} is in phase {state.phase}: search still reads the old column",
            state="nothing was changed",
            next_step="bge-pipeline migrate",
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
            connection.execute(trigger_function_statement(target, target.embedding_column))
            connection.execute(target.sql("ALTER TABLE {table} DROP COLUMN {previous}", previous=previous))
            # After the table's lock is held: no statement of the application may be inside the old trigger.
            connection.execute(drop_quarantine_statement(target.companion))

        in_short_transaction(database, settings, "retire: drop the old column", drop_column)
    if reclaim:
        with_short_lock_wait(
            database, settings, "retire: rewrite the table", target.sql("VACUUM (FULL, ANALYZE) {table}")
        )
    with database.autocommit() as connection:
        after = table_bytes(connection, target)
    result = RetireResult(str(target), state.previous.name if state.previous else None, before, after, reclaim)
    record(database, target, "retire", result.as_metadata())
    return result
