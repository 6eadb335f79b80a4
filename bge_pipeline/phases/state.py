"""Where a migration stands, read from the catalog and the column notes; nothing else remembers it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column, TableDescription, describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.operator import naming_what_vanished
from bge_pipeline.database.pending import has_more_pending_than, has_pending_index
from bge_pipeline.database.quarantine import has_quarantine
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError, ChangedMeanwhile, EmbeddingSpaceMismatch, PhaseError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)

_LOOKS = 3
Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")
Phase = Literal["legacy", "expanded", "backfilled", "swapped", "retired"]


@dataclass(frozen=True)
class MigrationState:
    """The target table and the part that each of its vector columns plays.

    Attributes:
        table: the table as the catalog has it.
        phase: `legacy` before expand, `expanded` while rows are pending, `backfilled` when none is, `swapped` while
            the old column is kept, `retired` when it is gone.
        new: the column being filled, before the swap.
        previous: the old column, after the swap.
        companion: the column that this project keeps current beside the one that it fills, since it filled that too: while
            the next migration of a finished table runs the searched column, after its swap the previous one.
    """

    table: TableDescription
    phase: Phase
    new: Column | None
    previous: Column | None
    companion: Column | None = None

    @property
    def current_space(self) -> EmbeddingSpace | None:
        """The embedding space of the column that search reads, if it is recorded."""
        return space_of(self.table.embedding)

    @property
    def filled(self) -> Column:
        """The column that the backfill writes to: the new one, after the swap the current one.

        Raises:
            PhaseError: there is none yet.
        """
        if self.new is not None:
            return self.new
        if self.phase in ("swapped", "retired"):
            return self.table.embedding
        raise PhaseError(
            f"{self.table.target} has no column to fill yet: it is in phase legacy",
            state="nothing was changed",
            next_step="bge-pipeline migrate (or: alembic upgrade 005; or materialize schema_with_384_column)",
        )


def space_of(column: Column) -> EmbeddingSpace | None:
    """The embedding space recorded with a column."""
    note = column.note
    return note.space if note is not None else None


def read_state(connection: Connection, target: TargetTable) -> MigrationState:
    """Where the migration of `target` stands."""
    table = describe_table(connection, target)
    new, previous = table.with_role("new"), table.with_role("previous")
    phase: Phase = "legacy"
    if new is not None:
        # The index is built when the bulk is done; without it, every look would read the table.
        is_done = has_pending_index(connection, target, new.name) and not has_more_pending_than(
            connection, target, new.name, 0
        )
        phase = "backfilled" if is_done else "expanded"
    elif previous is not None:
        phase = "swapped"
    elif table.with_role("current") is not None:  # the embedding column itself
        phase = "retired"
    return MigrationState(table, phase, new, previous, _companion(connection, table, new, previous))


def _companion(
    connection: Connection, table: TableDescription, new: Column | None, previous: Column | None
) -> Column | None:
    column = table.embedding if new is not None else previous
    note = column.note if column is not None else None
    is_ours = note is not None and (note.role == "current" or note.maintained)
    # Without its quarantine it was swapped by a version that left it alone.
    return column if is_ours and has_quarantine(connection, table.target.companion) else None


def with_quarantine_of(connection: Connection, target: TargetTable, number: int) -> TargetTable:
    """The table with the quarantine of the column of that number: whose that is another process may have changed meanwhile.

    In a transaction that holds until its end: an exchange waits for whoever has read the table.
    """
    connection.execute(target.sql("SELECT FROM {table} WHERE false"))
    companion = read_state(connection, target).companion
    return replace(target, is_companion=companion is not None and companion.number == number)


def looking_again(
    read: Callable[Concatenate[Migration, Arguments], Found],
) -> Callable[Concatenate[Migration, Arguments], Found]:
    """Let a function that only reads begin anew where another process exchanged the columns under its eyes.

    It raises ChangedMeanwhile where that happens again and again.
    """

    @wraps(read)
    def look(migration: Migration, /, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Found:
        for _ in range(_LOOKS - 1):
            try:
                with naming_what_vanished(migration.target, read.__name__):
                    return read(migration, *arguments, **keywords)
            except ChangedMeanwhile as error:
                logger.info("%s; looking again", error.message)
        with naming_what_vanished(migration.target, read.__name__):
            return read(migration, *arguments, **keywords)

    return look


@looking_again
def require_table(migration: Migration) -> MigrationState:
    """Where the configured table stands.

    Raises:
        TargetTableError: there is no such table, or it cannot be migrated.
    """
    with migration.database.autocommit() as connection:
        return read_state(connection, migration.target)


def require_same_parts(connection: Connection, state: MigrationState) -> None:
    """See, in the transaction of a change, that the columns still play the parts that `state` says.

    Raises:
        ChangedMeanwhile: another process gave them other parts, or dropped one.
    """
    target = state.table.target
    if _parts(describe_table(connection, target)) != _parts(state.table):
        raise ChangedMeanwhile(
            f"the columns of {target} were added, exchanged or dropped by another process meanwhile",
            state="this process did nothing to them",
            next_step="bge-pipeline status says where the migration stands",
        )


@contextmanager
def seeing_same_parts(database: Database, state: MigrationState) -> Iterator[None]:
    """See as the block ends, also with an error of ours, that the columns still play the parts that `state` says.

    Raises:
        ChangedMeanwhile: as `require_same_parts`.
    """
    try:
        yield
    except BgePipelineError:
        with database.autocommit() as connection:
            require_same_parts(connection, state)
        raise
    with database.autocommit() as connection:
        require_same_parts(connection, state)


def _parts(table: TableDescription) -> tuple[object, ...]:
    """Which column plays which part, and the space of each; names are left out, as every exchange gives them to others."""
    columns = (table.embedding, table.with_role("new"), table.with_role("previous"))
    return (table.oid, *((column.number, space_of(column)) if column else None for column in columns))


def require_space(column: Column, space: EmbeddingSpace, target: TargetTable) -> None:
    """Refuse vectors of another embedding space than the column's, or of another text of the rows.

    Raises:
        EmbeddingSpaceMismatch: names what differs.
    """
    require_text(column, target)
    recorded = space_of(column)
    if recorded is not None and recorded.is_same_as(space):
        return
    differences = "nothing recorded" if recorded is None else "; ".join(recorded.differences(space))
    raise EmbeddingSpaceMismatch(
        f"column {column.name!r} of {target} holds vectors of {recorded or 'an unrecorded embedding space'}, "
        f"and the configured model makes {space} ({differences})",
        state="nothing was written",
        next_step="set EMBEDDING_MODEL and EMBEDDING_DIMENSIONS to the column's model, or begin a migration to the other "
        "one: finish this one with `bge-pipeline retire`, or undo it with `bge-pipeline rollback`",
    )


def other_text(column: Column, target: TargetTable) -> str | None:
    """In words, that the column's vectors were made of another text of the rows, or of other rows, than the settings name."""
    made_of = column.note.text if column.note is not None else None
    wanted = target.row_text.recorded
    if made_of == wanted:
        return None
    was, now = ("a plain text column (TARGET_TEXT_COLUMN)" if text is None else text for text in (made_of, wanted))
    return f"the vectors in column {column.name!r} of {target} are those of {was}, and the settings name {now}"


def require_text(column: Column, target: TargetTable) -> None:
    """Refuse to go on with vectors of another text of the rows, or of other rows, than the settings name.

    Raises:
        EmbeddingSpaceMismatch: names both.
    """
    found = other_text(column, target)
    if found is None:
        return
    raise EmbeddingSpaceMismatch(
        found,
        state="nothing was written",
        next_step="set TARGET_TEXT and TARGET_WHERE as they were; or begin anew: while the column is being filled with "
        "`bge-pipeline rollback --discard`, and where search reads it by taking its note away, COMMENT ON COLUMN "
        f"{target}.{quote(column.name)} IS NULL;, after which it counts as vectors of a model that nobody recorded",
    )
