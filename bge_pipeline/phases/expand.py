"""Expand: put the new column beside the old one, with everything that keeps it true. Undone by `collapse`."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.catalog import Column, describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.dependents import find_dependents
from bge_pipeline.database.index_build import build_concurrently
from bge_pipeline.database.indexes import (
    Index,
    build_memory_bytes,
    definition_name,
    definition_on,
    drop_index,
    indexes_on,
)
from bge_pipeline.database.journal import create_journal_statement, record
from bge_pipeline.database.locks import in_short_transaction, lock_timeout_statement
from bge_pipeline.database.notes import ColumnNote, note_statement
from bge_pipeline.database.pending import pending_index_statement
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.quarantine import (
    copy_quarantine_statement,
    create_quarantine_statements,
    drop_quarantine_statement,
    release_all,
)
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import drop_trigger_statements, trigger_function_statement, trigger_statements
from bge_pipeline.embedding.space import EmbeddingSpace
from bge_pipeline.errors import ConfigurationError, PhaseError
from bge_pipeline.phases.companion import can_be_kept, missing_model
from bge_pipeline.phases.state import MigrationState, read_state, require_space
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpandResult:
    """What expand did; `added` is False when the column was there already, `table_bytes_before` the size at the start."""

    table: str
    column: str
    dimensions: int
    added: bool
    dropped_indexes: tuple[str, ...]
    dependents: tuple[str, ...]
    table_bytes_before: int

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def expand(database: Database, settings: Settings, space: EmbeddingSpace) -> ExpandResult:
    """Add the column for `space`, its trigger, quarantine and pending index; drop the old ANN index if asked to.

    Safe to interrupt and to repeat: each step looks at what is there first.

    Raises:
        PhaseError: an earlier migration has not been retired.
        EmbeddingSpaceMismatch: a migration to another space is under way.
    """
    target = TargetTable.from_settings(settings)
    _check_dimensions(settings, space)
    with database.autocommit() as connection:
        state = read_state(connection, target)
        size = table_bytes(connection, target)
    if _is_done_already(state, space):
        return ExpandResult(str(target), target.embedding_column, space.dimensions, False, (), (), size)

    column = target.column_for(space.dimensions)
    _check_names_are_free(state, column)
    with database.autocommit() as connection:
        old_indexes = [
            i for i in indexes_on(connection, state.table.oid, state.table.embedding.number) if i.is_vector_index
        ]
        dependents = find_dependents(connection, state.table, target.embedding_column)
        require_privileges(connection, state.table)
    doomed = [index for index in old_indexes if settings.old_index == "drop"]
    note = _note(state, space, doomed)
    for dependent in dependents:
        logger.warning(
            "%s depends on the old column %r; see it to the new one before the swap", dependent, target.embedding_column
        )

    def add_column(connection: Connection) -> None:
        for statement in column_statements(target, space, note, maintains_old=_maintains_old(state)):
            connection.execute(statement)
        if state.new is None:  # what another model could not embed
            if _maintains_old(state):
                connection.execute(copy_quarantine_statement(target, target.companion))
            release_all(connection, target)

    in_short_transaction(database, settings, "expand: add the column", add_column)
    _build_pending_index(database, target, column, space)
    if _maintains_old(state) and state.current_space is not None:
        if not can_be_kept(state.current_space, settings):
            logger.warning("%s", missing_model(state.current_space, is_before_swap=True))
        _build_pending_index(database, target, target.embedding_column, state.current_space)
    with database.autocommit() as connection:
        for index in doomed:
            logger.info("dropping index %s on the old column; rollback builds it again", index.name)
            drop_index(connection, target.schema, index.name)
    result = ExpandResult(
        table=str(target),
        column=column,
        dimensions=space.dimensions,
        added=state.new is None,
        dropped_indexes=tuple(index.name for index in doomed),
        dependents=tuple(str(dependent) for dependent in dependents),
        table_bytes_before=size,
    )
    record(database, target, "expand", result.as_metadata())
    return result


def column_statements(
    target: TargetTable, space: EmbeddingSpace, note: ColumnNote, *, maintains_old: bool = False
) -> list[TextClause]:
    """The statements of expand's one transaction, in order; each may be repeated.

    `maintains_old`: the embedding column comes from an earlier migration: the trigger goes on emptying it, and it is the
    companion column, with a quarantine of its own.
    """
    column = target.column_for(space.dimensions)
    return [
        target.sql(
            "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} vector({dimensions})",
            column=column,
            dimensions=space.dimensions,
        ),
        note_statement(target, column, note),
        *create_quarantine_statements(target),
        *(create_quarantine_statements(target.companion) if maintains_old else ()),
        create_journal_statement(target),
        trigger_function_statement(
            target,
            column,
            also_empty=target.embedding_column if maintains_old else None,
            has_companion=maintains_old,
        ),
        *trigger_statements(target),
    ]


def expand_script(target: TargetTable, settings: Settings, space: EmbeddingSpace) -> list[TextClause]:
    """All of expand as statements for a reviewer; the old ANN index, whose name only the database knows, is left out."""
    _check_dimensions(settings, space)
    column = target.column_for(space.dimensions)
    index = target.pending_index(column, space.fingerprint)
    return [
        lock_timeout_statement(settings),
        *column_statements(target, space, ColumnNote("new", space.as_dict(), embedding_column=target.embedding_column)),
        pending_index_statement(target, column, index),
    ]


def collapse(database: Database, settings: Settings) -> str | None:
    """Undo expand: build the dropped indexes again, then drop the new column with everything that came with it.

    Returns the name of the dropped column, None where there was nothing to undo.

    Raises:
        PhaseError: the columns are swapped; exchange them back first.
    """
    target = TargetTable.from_settings(settings)
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
    new = state.new
    with database.autocommit() as connection:
        require_privileges(connection, state.table)
    restore_indexes(database, settings, new, state.table.embedding)

    def drop_column(connection: Connection) -> None:
        if _maintains_old(state):
            connection.execute(trigger_function_statement(target, target.embedding_column))
            release_all(connection, target)
        else:
            for statement in (*drop_trigger_statements(target), drop_quarantine_statement(target)):
                connection.execute(statement)
        connection.execute(target.sql("ALTER TABLE {table} DROP COLUMN {column}", column=new.name))
        if state.companion is not None:  # now the column that this project fills
            connection.execute(copy_quarantine_statement(target.companion, target))
            connection.execute(drop_quarantine_statement(target.companion))

    in_short_transaction(database, settings, "collapse: drop the new column", drop_column)
    record(database, target, "collapse", {"dropped_column": new.name})
    return new.name


def restore_indexes(database: Database, settings: Settings, keeper: Column, old: Column) -> tuple[str, ...]:
    """Build the ANN indexes again that expand dropped, by the definitions in the note of `keeper`.

    Args:
        database: where the target table is.
        settings: name the table.
        keeper: the column whose note holds the definitions.
        old: the column with the old vectors, under the name that it has now.

    Returns:
        The names of the indexes, which may have been there already.
    """
    target = TargetTable.from_settings(settings)
    assert keeper.note is not None
    with database.autocommit() as connection:
        rows = describe_table(connection, target).estimated_rows
    names = []
    for definition in keeper.note.dropped_indexes:
        name = definition_name(definition)
        head, _, body = definition_on(definition, target.embedding_column, old.name).partition(" INDEX ")
        statement = text(f"{head} INDEX CONCURRENTLY {body}".replace(":", "\\:"))
        memory = build_memory_bytes(definition, old.dimensions, rows)
        build_concurrently(database, target, name, statement, memory_bytes=memory)
        names.append(name)
    return tuple(names)


def _check_dimensions(settings: Settings, space: EmbeddingSpace) -> None:
    if space.dimensions != settings.embedding_dimensions:
        raise ConfigurationError(
            f"EMBEDDING_DIMENSIONS is {settings.embedding_dimensions}, and {space.model} makes {space.dimensions} dimensions",
            state="nothing was changed",
            next_step=f"set EMBEDDING_DIMENSIONS={space.dimensions}, or another EMBEDDING_MODEL",
        )


def _check_names_are_free(state: MigrationState, column: str) -> None:
    """Neither the new column's name nor the one that the swap will give the old column may be the user's own."""
    target = state.table.target
    ours = state.new.name if state.new is not None else None
    for name in (column, target.column_for(state.table.embedding.dimensions), target.exchange_column):
        if name in state.table.columns and name != ours:
            raise PhaseError(
                f"{target} already has a column {name!r}, which this tool did not make and whose name it needs",
                state="nothing was changed",
                next_step=f"rename or drop the column {name!r} first",
            )


def _is_done_already(state: MigrationState, space: EmbeddingSpace) -> bool:
    target = state.table.target
    if state.new is not None:
        require_space(state.new, space, target)
        return False
    if state.current_space is not None and state.current_space.is_same_as(space):
        return True
    if state.phase == "swapped":
        raise PhaseError(
            f"{target} still keeps {state.previous.name if state.previous else 'the old column'!r} of the last migration",
            state="nothing was changed",
            next_step="bge-pipeline retire (drops the old vectors), or bge-pipeline rollback, then begin the next migration",
        )
    return False


def _maintains_old(state: MigrationState) -> bool:
    """Whether this project fills the embedding column too, because an earlier migration made it."""
    note = state.table.embedding.note
    return note is not None and note.role == "current"


def _note(state: MigrationState, space: EmbeddingSpace, doomed: list[Index]) -> ColumnNote:
    """The new column's note; a repeated expand keeps what the first one recorded."""
    earlier = state.new.note if state.new is not None else None
    definitions = dict.fromkeys(earlier.dropped_indexes if earlier is not None else ())
    definitions |= dict.fromkeys(index.definition for index in doomed if index.valid)
    return ColumnNote(
        "new",
        earlier.space if earlier is not None else space.as_dict(),
        dropped_indexes=tuple(definitions),
        embedding_column=state.table.target.embedding_column,
    )


def _build_pending_index(database: Database, target: TargetTable, column: str, space: EmbeddingSpace) -> None:
    # Named for the column as it was when it was new: an exchange does not rename the index.
    name = target.pending_index(target.column_for(space.dimensions), space.fingerprint)
    build_concurrently(database, target, name, pending_index_statement(target, column, name))
