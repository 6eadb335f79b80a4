"""Rollback: exchange the columns back, so that search reads the old vectors again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.journal import record
from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.partitions import partitions_with_own
from bge_pipeline.database.pending import count_lacking_within
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.collapse import restore_indexes
from bge_pipeline.phases.consent import moment, require_asked
from bge_pipeline.phases.exchange import behind_exchange, exchange_back_statements, lock_for_exchange
from bge_pipeline.phases.index_names import (
    NAMES_STAY,
    give_back_name,
    give_back_partition_names,
    indexes_of_partitions,
)
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, read_state, require_table, space_of
from bge_pipeline.phases.swap_checks import check_dependents_on_current
from bge_pipeline.phases.telling import untold
from bge_pipeline.telemetry.observed import observed

_MOST_COUNTED = 1_000
"""Rows without an old vector, before the question: with more, the answer is the same."""
_COUNT_BEFORE_MS, _COUNT_AFTER_MS = 1_000, 10_000
"""For how long they are counted."""


@dataclass(frozen=True)
class RollbackResult:
    """What the way back did.

    Attributes:
        rows_without_old_vector: rows that came or changed since the swap, for which there is no old vector; None where
            counting them takes long.
        restored_indexes: ANN indexes on the old column that were built again.
        rolled_back: the moment that the kept column's note remembers, until somebody agrees to go forward again.
        notices: what a person should still do.
    """

    table: str
    column: str
    kept_column: str
    lock_milliseconds: float
    rows_without_old_vector: int | None
    restored_indexes: tuple[str, ...]
    rolled_back: str
    notices: tuple[str, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@observed("rollback")
def rollback(
    migration: Migration,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
    on_step: Callable[[str], None] = untold,
    seen: MigrationState | None = None,
) -> RollbackResult:
    """Exchange the columns back: search reads the old vectors again, the new ones are kept beside them.

    It is remembered with the column: no road exchanges the columns again before somebody has agreed to it.
    ANN indexes that expand dropped are built again first, so that search is never without one; the exchange itself
    takes milliseconds. Interrupted, a second call goes on where the first stopped.

    Args:
        migration: of the table; among its settings DEPENDENTS.
        on_progress: told how far the build of an index is.
        on_step: told what begins, in a word or two.
        seen: what a person was asked about, or else it is read before another operator is waited for: columns that were
            exchanged meanwhile are not exchanged back.

    Raises:
        ChangedMeanwhile: there are such columns.
        PhaseError: the columns are not swapped, or the old one is gone.
        SwapRefused: something that was made since the swap depends on the new column.
        OperatorBusy: another process changes the table's schema now.
    """
    seen = seen if seen is not None else require_table(migration)
    with migration.operating("rollback") as operator:
        return _rollback(migration, operator, seen, on_progress, on_step)


def _rollback(
    migration: Migration,
    operator: Operator,
    seen: MigrationState,
    on_progress: Callable[[BuildProgress], None] | None,
    on_step: Callable[[str], None],
) -> RollbackResult:
    database, target = migration.database, migration.target
    with database.autocommit() as connection:
        state = read_state(connection, target)
    require_asked(target, seen.previous, state.previous)
    if state.previous is None:
        raise PhaseError(
            f"{target} is in phase {state.phase}: there is no old column to go back to",
            state="nothing was changed",
            next_step="the old vectors were dropped: migrate to the old model" if state.phase == "retired" else None,
        )
    previous, current = state.previous, state.table.embedding
    space = space_of(current)
    assert previous.note is not None
    assert current.note is not None
    assert space is not None
    kept_column = target.column_for(space.dimensions)
    with database.autocommit() as connection:
        require_privileges(connection, state.table)
        check_dependents_on_current(connection, migration.settings, state, kept_column)
    restored = restore_indexes(migration, previous, previous, on_progress=on_progress, on_step=on_step)
    on_step("exchange back")
    locked_at = time.perf_counter()
    now = moment()

    def exchange_back(connection: Connection) -> None:
        nonlocal locked_at
        lock_for_exchange(connection, state)
        locked_at = time.perf_counter()
        # A view may have come meanwhile.
        check_dependents_on_current(connection, migration.settings, state, kept_column)
        give_back_name(connection, state, previous, current, kept_column)
        partitions = partitions_with_own(connection, target, current.name)
        for statement in exchange_back_statements(
            target, previous, current, kept_column, rolled_back=now, partitions=partitions
        ):
            connection.execute(statement)

    with database.autocommit() as connection:
        of_partitions = indexes_of_partitions(connection, target, previous.name, current.name)
    operator.change(migration.settings, "rollback: exchange the columns back", exchange_back)
    milliseconds = (time.perf_counter() - locked_at) * 1_000
    if of_partitions:
        with behind_exchange(target, NAMES_STAY):
            operator.change(
                migration.settings,
                "rollback: name the partitions' indexes",
                lambda connection: give_back_partition_names(
                    connection, of_partitions, previous.name, kept_column, space
                ),
            )
    missing = None
    with behind_exchange(target, "rows without an old vector were not counted"):
        missing = count_lacking_within(database, target, target.embedding_column, _COUNT_AFTER_MS)
    result = RollbackResult(
        table=str(target),
        column=target.embedding_column,
        kept_column=kept_column,
        lock_milliseconds=milliseconds,
        rows_without_old_vector=missing,
        restored_indexes=restored,
        rolled_back=now,
        notices=_rollback_notices(target, missing, previous.note),
    )
    with behind_exchange(target, "the journal does not tell of it"):
        record(database, target, "rollback", result.as_metadata())
    return result


def rollback_cost(migration: Migration) -> str | None:
    """What a rollback now would cost, for the question before it; None where every row has its old vector.

    A large table is not read to the end for it: search may be broken while the question waits.
    """
    target = migration.target
    with migration.database.autocommit() as connection:
        previous = read_state(connection, target).previous
    if previous is None:
        return None
    missing = count_lacking_within(migration.database, target, previous.name, _COUNT_BEFORE_MS, most=_MOST_COUNTED + 1)
    if missing is None:
        return "Search would not find rows that came or changed since the swap and have no old vector; counting them takes long."
    if not missing:
        return None
    rows = f"{missing}" if missing <= _MOST_COUNTED else f"more than {_MOST_COUNTED:,}"
    return f"{rows} rows came or changed since the swap and have no old vector: search would not find them."


def _rollback_notices(target: TargetTable, missing: int | None, note: ColumnNote) -> tuple[str, ...]:
    notices = []
    if missing != 0:
        rows = f"{missing} rows" if missing is not None else "rows, which bge-pipeline status counts,"
        notices.append(
            f"{rows} came or changed since the swap and have no old vector; "
            + ("bge-pipeline embed gives them one" if note.maintained else "the application's old code must embed them")
        )
    if note.not_null:
        notices.append(
            f"{target.embedding_column!r} was NOT NULL before the swap; when every row has a vector again: "
            f"ALTER TABLE {target} ALTER COLUMN {quote(target.embedding_column)} SET NOT NULL;"
        )
    return tuple(notices)
