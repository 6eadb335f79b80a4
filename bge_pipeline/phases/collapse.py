"""Collapse: the way back of expand. Drops the new column and what came with it, builds dropped indexes again."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, text

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.catalog import Column, describe_table
from bge_pipeline.database.index_build import build_concurrently
from bge_pipeline.database.indexes import (
    build_memory_bytes,
    definition_name,
    definition_named,
    definition_on,
)
from bge_pipeline.database.journal import drop_journal_statement, record
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.quarantine import copy_quarantine_statement, drop_quarantine_statement, release_all
from bge_pipeline.database.storage import restored_targets
from bge_pipeline.database.trigger import WatchedColumns, drop_trigger_statements
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.consent import require_asked
from bge_pipeline.phases.exchange import lock_for_exchange
from bge_pipeline.phases.index_names import restored_name
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.safeguards import maintains_old, trigger_script
from bge_pipeline.phases.state import MigrationState, read_state, require_table
from bge_pipeline.phases.telling import untold
from bge_pipeline.telemetry.observed import observed


@observed("collapse")
def collapse(
    migration: Migration,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
    on_step: Callable[[str], None] = untold,
    seen: MigrationState | None = None,
) -> str | None:
    """Undo expand: build the dropped indexes again, then drop the new column with everything that came with it.

    Args:
        migration: of the table.
        on_progress: told how far the build of an index is.
        on_step: told what begins, in a word or two.
        seen: what a person was asked about, or else it is read before another operator is waited for: a column that has come
            meanwhile is not dropped.

    Returns the name of the dropped column, None where there was nothing to undo.

    Raises:
        ChangedMeanwhile: there is such a column.
        PhaseError: the columns are swapped; exchange them back first.
        OperatorBusy: another process changes the table's schema now.
    """
    seen = seen if seen is not None else require_table(migration)
    with migration.operating("collapse") as operator:
        return _collapse(migration, operator, seen, on_progress, on_step)


def _collapse(
    migration: Migration,
    operator: Operator,
    seen: MigrationState,
    on_progress: Callable[[BuildProgress], None] | None,
    on_step: Callable[[str], None],
) -> str | None:
    database, target = migration.database, migration.target
    with database.autocommit() as connection:
        state = read_state(connection, target)
    if state.phase in ("swapped", "retired"):
        raise PhaseError(
            f"{target} is in phase {state.phase}: the new column is the one that search reads",
            state="nothing was changed",
            next_step="bge-pipeline rollback"
            if state.phase == "swapped"
            else "the old vectors are gone: migrate to the old model",
        )
    if state.new is None:
        return None
    require_asked(target, seen.new, state.new)
    new = state.new
    with database.autocommit() as connection:
        require_privileges(connection, state.table)
    restore_indexes(migration, new, state.table.embedding, on_progress=on_progress, on_step=on_step)
    on_step("drop the new column")
    operator.change(migration.settings, "collapse: drop the new column", lambda session: _drop(session, state, new))
    if maintains_old(state):
        record(database, target, "collapse", {"dropped_column": new.name})
    return new.name


def _drop(connection: Connection, state: MigrationState, new: Column) -> None:
    target = state.table.target
    lock_for_exchange(connection, state)
    if maintains_old(state):
        for statement in trigger_script(connection, state, WatchedColumns(target.embedding_column)):
            connection.execute(statement)
        release_all(connection, target)
    else:
        tables = (drop_quarantine_statement(target), drop_journal_statement(target))
        for statement in (*drop_trigger_statements(target), *tables):
            connection.execute(statement)
    connection.execute(target.sql("ALTER TABLE {table} DROP COLUMN {column}", column=new.name))
    if new.note is not None and new.note.tuple_target_before is not None and new.dimensions is not None:
        vector = VectorType("halfvec" if new.type_name == "halfvec" else "vector", new.dimensions)
        for statement in restored_targets(connection, target, vector, new.note.tuple_target_before):
            connection.execute(statement)
    if state.companion is not None:  # now the column that this project fills
        connection.execute(copy_quarantine_statement(target.companion, target))
        connection.execute(drop_quarantine_statement(target.companion))


def restore_indexes(
    migration: Migration,
    keeper: Column,
    old: Column,
    *,
    on_progress: Callable[[BuildProgress], None] | None,
    on_step: Callable[[str], None],
) -> tuple[str, ...]:
    """Build the ANN indexes again that expand dropped, by the definitions in the note of `keeper`.

    Args:
        migration: of the table.
        keeper: the column whose note holds the definitions.
        old: the column with the old vectors, under the name that it has now.
        on_progress: told how far the build of an index is.
        on_step: told which index is built.

    Returns:
        The names that the indexes had, which may have been there already. Where the new column's index bears one after
        a swap, the old one gets it when the columns are exchanged back.
    """
    target = migration.target
    assert keeper.note is not None
    names = []
    for definition in keeper.note.dropped_indexes:
        names.append(definition_name(definition))
        with migration.database.autocommit() as connection:
            rows = describe_table(connection, target).estimated_rows
            name = restored_name(connection, target, names[-1], old)
        renamed = definition_named(definition_on(definition, target.embedding_column, old.name), name)
        statement = text(renamed.replace(" INDEX ", " INDEX CONCURRENTLY ", 1).replace(":", "\\:"))
        memory = build_memory_bytes(definition, old.dimensions, rows)
        on_step(f"index {names[-1]}")
        build_concurrently(
            migration.database,
            target,
            name,
            statement,
            column=old.name,
            memory_bytes=memory,
            workers=migration.settings.index_build_workers,
            on_progress=on_progress,
        )
    return tuple(names)
