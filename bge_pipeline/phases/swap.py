"""Swap: index the new column, verify it, exchange the columns in one short transaction; and the way back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.catalog import Column, TableDescription, describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.dependents import find_bound
from bge_pipeline.database.grants import copy_column_grants
from bge_pipeline.database.index_build import BuildProgress, BuildResult, build_concurrently, rebuild_concurrently
from bge_pipeline.database.indexes import (
    MEBIBYTE,
    IndexPlan,
    create_index_statement,
    index_is_valid,
    plan_index,
)
from bge_pipeline.database.journal import record
from bge_pipeline.database.locks import in_short_transaction, lock_timeout_statement
from bge_pipeline.database.notes import ColumnNote, comment_statement, note_statement
from bge_pipeline.database.pending import count_pending, has_more_pending_than, pending_index_statement
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import trigger_function_statement
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.embedding.space import EmbeddingSpace
from bge_pipeline.errors import PhaseError, SwapRefused
from bge_pipeline.evaluation.gate import GateResult
from bge_pipeline.phases.expand import restore_indexes
from bge_pipeline.phases.quality import note_search_effort, require_quality
from bge_pipeline.phases.state import MigrationState, read_state, require_space, space_of
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SwapResult:
    """What the swap did.

    Attributes:
        exchanged: False when the columns had been exchanged before.
        previous_column: where the old vectors are, None when they were dropped.
        lock_milliseconds: how long the exclusive lock on the table was held.
        not_null_dropped: the old column was NOT NULL, which inserts without an old vector would have broken.
        gate: what the quality gate measured and decided, overridden or not; None with QUALITY_GATE=off.
    """

    table: str
    column: str
    exchanged: bool
    previous_column: str | None
    index_name: str
    index_method: str
    index_built: bool
    index_seconds: float
    index_bytes: int
    maintenance_work_mem_mb: int
    lock_milliseconds: float
    not_null_dropped: bool
    gate: GateResult | None

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"gate": self.gate.as_metadata() if self.gate else None}


@dataclass(frozen=True)
class RollbackResult:
    """What the way back did.

    Attributes:
        rows_without_old_vector: rows that came or changed since the swap, for which there is no old vector.
        restored_indexes: ANN indexes on the old column that were built again.
        notices: what a person should still do.
    """

    table: str
    column: str
    kept_column: str
    lock_milliseconds: float
    rows_without_old_vector: int
    restored_indexes: tuple[str, ...]
    notices: tuple[str, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def build_index(
    database: Database, settings: Settings, *, on_progress: Callable[[BuildProgress], None] | None = None
) -> BuildResult:
    """Build the vector index on the column that the migration fills, unless it is there and valid."""
    target = TargetTable.from_settings(settings)
    with database.autocommit() as connection:
        column, space = _filled(read_state(connection, target))
        rows = int(connection.execute(target.sql("SELECT count(*) FROM {table}")).scalar_one())
    plan = plan_vector_index(settings, space, rows)
    name = target.vector_index(target.column_for(space.dimensions), space.fingerprint, plan.method)
    statement = create_index_statement(target, column.name, name, plan)
    result = build_concurrently(
        database, target, name, statement, memory_bytes=plan.memory_bytes, on_progress=on_progress
    )
    with database.autocommit() as connection:
        connection.execute(target.sql("ANALYZE {table} ({column})", column=column.name))
    return result


def plan_vector_index(settings: Settings, space: EmbeddingSpace, rows: int) -> IndexPlan:
    """The vector index that the settings ask for on a table of `rows` rows."""
    return plan_index(
        rows,
        space.dimensions,
        method=settings.index_method,
        element=settings.index_element,
        lists=settings.index_lists,
        m=settings.index_m,
        ef_construction=settings.index_ef_construction,
        max_memory_bytes=settings.index_max_memory_mb * MEBIBYTE if settings.index_max_memory_mb else None,
    )


def swap(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> SwapResult:
    """Index the new column, ask the quality gate, and make the column the one that search reads.

    Args:
        database: where the target table is.
        settings: among them OLD_EMBEDDING, DEPENDENTS, SWAP_MAX_PENDING_ROWS and QUALITY_GATE.
        service: the model that is believed to have made the new column's vectors.
        on_progress: told how far the index build is.

    Raises:
        SwapRefused: rows are pending, something depends on the old column, the quality gate does not pass, or the
            index is not valid.
        EmbeddingSpaceMismatch: the new column holds another space.
        LockNotAcquired: the table was never free for LOCK_TIMEOUT_MS.
    """
    target, space = TargetTable.from_settings(settings), service.space
    with database.autocommit() as connection:
        state = read_state(connection, target)
        column, _ = _filled(state)
        require_space(column, space, target)
        require_privileges(connection, state.table)
        if state.new is not None:
            _check_dependents(connection, settings, state)
            _check_pending(connection, settings, target, column.name)
    index = build_index(database, settings, on_progress=on_progress)
    if state.new is None:
        previous = state.previous.name if state.previous else None
        return _result(settings, state, index, previous, None, exchanged=False, milliseconds=0.0)
    note_search_effort(database, settings, state.new)
    gate = require_quality(database, settings, service)
    with database.autocommit() as connection:
        state = read_state(connection, target)
    assert state.new is not None
    _compact_pending_index(database, target, state.new, space)
    new, old = state.new, state.table.embedding
    previous_column = target.column_for(old.dimensions)
    locked_at = time.perf_counter()

    def exchange(connection: Connection) -> None:
        nonlocal locked_at
        _lock(connection, state)
        locked_at = time.perf_counter()
        _verify_under_lock(connection, settings, state, space, index.name)
        for statement in exchange_statements(target, new, old, drop_old=settings.old_embedding == "drop"):
            connection.execute(statement)
        copy_column_grants(connection, state.table, old, target.embedding_column)

    in_short_transaction(database, settings, "swap: exchange the columns", exchange)
    milliseconds = (time.perf_counter() - locked_at) * 1_000
    kept = previous_column if settings.old_embedding == "keep" else None
    result = _result(settings, state, index, kept, gate, exchanged=True, milliseconds=milliseconds)
    record(database, target, "swap", result.as_metadata())
    return result


def exchange_statements(target: TargetTable, new: Column, old: Column, *, drop_old: bool) -> list[TextClause]:
    """The statements that make `new` the embedding column and keep or drop `old`; for one transaction, under lock."""
    assert new.note is not None
    previous_column = target.column_for(old.dimensions)
    comment = old.note.comment if old.note else old.comment
    current = replace(new.note, role="current", dropped_indexes=(), embedding_column=None, comment=comment)
    previous = ColumnNote(
        "previous",
        old.note.space if old.note else None,
        dropped_indexes=new.note.dropped_indexes,
        not_null=old.not_null,
        comment=comment,
        embedding_column=target.embedding_column,
        maintained=old.note is not None and old.note.role == "current",
    )
    statements = [
        target.sql("ALTER TABLE {table} ALTER COLUMN {embedding} DROP NOT NULL"),
        *_rename_statements(target, new.name, previous_column),
        note_statement(target, target.embedding_column, current),
        note_statement(target, previous_column, previous),
        trigger_function_statement(target, target.embedding_column, also_empty=None if drop_old else previous_column),
    ]
    if drop_old:
        statements.append(target.sql("ALTER TABLE {table} DROP COLUMN {previous}", previous=previous_column))
    return statements


def swap_script(target: TargetTable, settings: Settings, space: EmbeddingSpace) -> list[TextClause]:
    """All of swap as statements for a reviewer, where no database can be asked for rows and the old column.

    The lists of an IVFFlat index are INDEX_LISTS or those of a million rows, the old column LEGACY_DIMENSIONS wide.
    """
    new_name = target.column_for(space.dimensions)
    new = Column(
        new_name,
        0,
        "vector",
        f"vector({space.dimensions})",
        False,
        False,
        ColumnNote("new", space.as_dict()).as_comment(),
    )
    old = Column(target.embedding_column, 0, "vector", f"vector({settings.legacy_dimensions})", False, False, None)
    plan = plan_vector_index(settings, space, 1_000_000)
    index = target.vector_index(new_name, space.fingerprint, plan.method)
    return [
        create_index_statement(target, new_name, index, plan),
        target.sql("ANALYZE {table} ({column})", column=new_name),
        lock_timeout_statement(settings),
        target.sql("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
        *exchange_statements(target, new, old, drop_old=settings.old_embedding == "drop"),
    ]


def rollback(database: Database, settings: Settings) -> RollbackResult:
    """Exchange the columns back: search reads the old vectors again, the new ones are kept beside them.

    ANN indexes that expand dropped are built again first, so that search is never without one; the exchange itself
    takes milliseconds. Interrupted, a second call goes on where the first stopped.

    Raises:
        PhaseError: the columns are not swapped, or the old one is gone.
    """
    target = TargetTable.from_settings(settings)
    with database.autocommit() as connection:
        state = read_state(connection, target)
    if state.previous is None:
        raise PhaseError(
            f"{target} is in phase {state.phase}: there is no old column to go back to",
            state="nothing was changed",
            next_step="the old vectors were dropped: migrate to the old model" if state.phase == "retired" else None,
        )
    with database.autocommit() as connection:
        require_privileges(connection, state.table)
    previous, current = state.previous, state.table.embedding
    space = space_of(current)
    assert previous.note is not None
    assert current.note is not None
    assert space is not None
    kept_column = target.column_for(space.dimensions)
    restored = restore_indexes(database, settings, previous, previous)
    locked_at = time.perf_counter()

    def exchange_back(connection: Connection) -> None:
        nonlocal locked_at
        _lock(connection, state)
        locked_at = time.perf_counter()
        for statement in _exchange_back_statements(target, previous, current, kept_column):
            connection.execute(statement)

    in_short_transaction(database, settings, "rollback: exchange the columns back", exchange_back)
    milliseconds = (time.perf_counter() - locked_at) * 1_000
    with database.autocommit() as connection:
        missing = count_pending(connection, target, target.embedding_column)
    result = RollbackResult(
        table=str(target),
        column=target.embedding_column,
        kept_column=kept_column,
        lock_milliseconds=milliseconds,
        rows_without_old_vector=missing,
        restored_indexes=restored,
        notices=_rollback_notices(target, missing, was_not_null=previous.note.not_null),
    )
    record(database, target, "rollback", result.as_metadata())
    return result


def _exchange_back_statements(
    target: TargetTable, previous: Column, current: Column, kept_column: str
) -> list[TextClause]:
    assert previous.note is not None
    assert current.note is not None
    note = previous.note
    maintained = target.embedding_column if note.maintained else None
    if note.maintained:
        restored = note_statement(
            target, target.embedding_column, ColumnNote("current", note.space, comment=note.comment)
        )
    elif note.space is not None:
        restored = note_statement(
            target, target.embedding_column, ColumnNote("legacy", note.space, comment=note.comment)
        )
    else:
        restored = comment_statement(target, target.embedding_column, note.comment)
    kept_note = replace(current.note, role="new", embedding_column=target.embedding_column, comment=None)
    return [
        *_rename_statements(target, previous.name, kept_column),
        restored,
        note_statement(target, kept_column, kept_note),
        trigger_function_statement(target, kept_column, also_empty=maintained),
    ]


def _rollback_notices(target: TargetTable, missing: int, *, was_not_null: bool) -> tuple[str, ...]:
    notices = []
    if missing:
        notices.append(
            f"{missing} rows came or changed since the swap and have no old vector; the application's old code must embed them"
        )
    if was_not_null:
        notices.append(
            f"{target.embedding_column!r} was NOT NULL before the swap; when every row has a vector again: "
            f"ALTER TABLE {target} ALTER COLUMN {quote(target.embedding_column)} SET NOT NULL;"
        )
    return tuple(notices)


def _rename_statements(target: TargetTable, incoming: str, outgoing: str) -> list[TextClause]:
    """`incoming` becomes the embedding column, which becomes `outgoing`; by way of a third name, as both may be one."""
    rename = "ALTER TABLE {table} RENAME COLUMN {old} TO {new}"
    embedding, between = target.embedding_column, target.exchange_column
    return [
        target.sql(rename, old=embedding, new=between),
        target.sql(rename, old=incoming, new=embedding),
        target.sql(rename, old=between, new=outgoing),
    ]


def _filled(state: MigrationState) -> tuple[Column, EmbeddingSpace]:
    column = state.filled
    space = space_of(column)
    if space is None:
        raise PhaseError(f"column {column.name!r} of {state.table.target} has no embedding space recorded")
    return column, space


def _check_dependents(connection: Connection, settings: Settings, state: MigrationState) -> None:
    bound = find_bound(connection, state.table, state.table.embedding.name)
    if not bound:
        return
    names = ", ".join(str(dependent) for dependent in bound)
    if settings.dependents == "ignore" and settings.old_embedding == "keep":
        logger.warning("these stay bound to the old vectors: %s", names)
        return
    drop_and_create = "drop them and create them again after the swap"
    raise SwapRefused(
        f"{len(bound)} objects depend on column {state.table.embedding.name!r} and would keep reading the old vectors: {names}",
        state="nothing was exchanged; search reads the old column",
        next_step=f"{drop_and_create}, or set DEPENDENTS=ignore to leave them on the old vectors"
        if settings.old_embedding == "keep"
        else f"{drop_and_create}; with OLD_EMBEDDING=drop there are no old vectors to leave them on",
    )


def _check_pending(connection: Connection, settings: Settings, target: TargetTable, column: str) -> None:
    if has_more_pending_than(connection, target, column, settings.swap_max_pending_rows):
        pending = count_pending(connection, target, column)
        raise SwapRefused(
            f"{pending} rows of {target} are pending: expected at most {settings.swap_max_pending_rows} (SWAP_MAX_PENDING_ROWS)",
            state="nothing was exchanged; search reads the old column",
            next_step="run the backfill again: bge-pipeline migrate",
        )


def _compact_pending_index(database: Database, target: TargetTable, new: Column, space: EmbeddingSpace) -> None:
    """Rid the pending index of the entries of every embedded row, which the check under the lock would step over."""
    name = target.pending_index(new.name, space.fingerprint)
    rebuild_concurrently(database, target, name, pending_index_statement(target, new.name, name))


def _lock(connection: Connection, state: MigrationState) -> None:
    """Lock the table, and see that its columns still play the parts that `state` says.

    Raises:
        PhaseError: another process exchanged them meanwhile.
    """
    target = state.table.target
    connection.execute(target.sql("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
    if _parts(describe_table(connection, target)) != _parts(state.table):
        raise PhaseError(
            f"the columns of {target} were exchanged or dropped by another process meanwhile",
            state="this process exchanged nothing",
            next_step="bge-pipeline status",
        )


def _parts(table: TableDescription) -> tuple[int | None, ...]:
    columns = (table.embedding, table.with_role("new"), table.with_role("previous"))
    return tuple(column.number if column else None for column in columns)


def _verify_under_lock(
    connection: Connection, settings: Settings, state: MigrationState, space: EmbeddingSpace, index: str
) -> None:
    target = state.table.target
    new = describe_table(connection, target).with_role("new")
    if new is None or new.dimensions != space.dimensions:
        raise SwapRefused(
            f"the new column of {target} does not hold {space.dimensions} dimensions", state="nothing was exchanged"
        )
    require_space(new, space, target)
    # The planner may believe that most rows are pending and read the table to find one; the index settles it.
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    _check_pending(connection, settings, target, new.name)
    _check_dependents(connection, settings, state)
    if not index_is_valid(connection, target.schema, index):
        raise SwapRefused(
            f"index {index} is not valid", state="nothing was exchanged", next_step="run the same command again"
        )


def _result(
    settings: Settings,
    state: MigrationState,
    index: BuildResult,
    previous_column: str | None,
    gate: GateResult | None,
    *,
    exchanged: bool,
    milliseconds: float,
) -> SwapResult:
    return SwapResult(
        table=str(state.table.target),
        column=state.table.target.embedding_column,
        exchanged=exchanged,
        previous_column=previous_column,
        index_name=index.name,
        index_method=settings.index_method,
        index_built=index.built,
        index_seconds=index.seconds,
        index_bytes=index.bytes,
        maintenance_work_mem_mb=index.maintenance_work_mem_mb,
        lock_milliseconds=milliseconds,
        not_null_dropped=exchanged and state.table.embedding.not_null,
        gate=gate,
    )
