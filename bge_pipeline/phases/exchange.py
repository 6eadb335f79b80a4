"""The exchange: two columns trade names, there and back, under one lock."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import Connection, TextClause
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.column_grants import copy_column_grants_statement
from bge_pipeline.database.notes import ColumnNote, comment_statement, note_statement
from bge_pipeline.database.quarantine import drop_quarantine_statement
from bge_pipeline.database.table_lock import lock_table
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import trigger_function_statement
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.row_writing import first_line
from bge_pipeline.phases.state import MigrationState, require_same_parts

logger = logging.getLogger(__name__)

ALONE = "ACCESS EXCLUSIVE"
"""The lock that keeps readers and writers off the table."""


def lock_for_exchange(connection: Connection, state: MigrationState) -> None:
    """Lock the table, and see that its columns still play the parts that `state` says.

    Raises:
        ChangedMeanwhile: another process exchanged or dropped them.
    """
    lock_table(connection, state.table.target, ALONE)
    require_same_parts(connection, state)


@contextmanager
def behind_exchange(target: TargetTable, what: str) -> Iterator[None]:
    """Work that may be wanting behind an exchange that is done: what prevents it is logged, as nothing has to be repeated."""
    try:
        yield
    except (BgePipelineError, SQLAlchemyError) as error:
        logger.warning("the columns of %s are exchanged, and %s: %s", target, what, first_line(error))


def exchange_statements(
    target: TargetTable, new: Column, old: Column, *, drop_old: bool, partitions: Sequence[TargetTable] = ()
) -> list[TextClause]:
    """The statements that make `new` the embedding column and keep or drop `old`; for one transaction, under lock.

    `partitions` are those whose old column may have privileges or a NOT NULL of its own.
    """
    assert new.note is not None
    previous_column = target.column_for(old.dimensions)
    maintained = old.note is not None and old.note.role == "current"
    comment = old.note.comment if old.note else old.comment
    current = replace(
        new.note, role="current", dropped_indexes=(), embedding_column=None, comment=comment, rolled_back=None
    )
    previous = ColumnNote(
        "previous",
        old.note.space if old.note else None,
        dropped_indexes=new.note.dropped_indexes,
        not_null=old.not_null,
        comment=comment,
        embedding_column=target.embedding_column,
        maintained=maintained,
        text=old.note.text if old.note else None,
    )
    statements = [
        *_make_room_statements(target, new.name, partitions),
        *rename_statements(target, new.name, previous_column),
        note_statement(target, target.embedding_column, current),
        note_statement(target, previous_column, previous),
    ]
    if drop_old:
        return [
            *statements,
            trigger_function_statement(target, target.embedding_column),
            target.sql("ALTER TABLE {table} DROP COLUMN {previous}", previous=previous_column),
            drop_quarantine_statement(target.companion),
        ]
    return [
        *statements,
        trigger_function_statement(target, target.embedding_column, also_empty=previous_column),
    ]


def exchange_back_statements(
    target: TargetTable,
    previous: Column,
    current: Column,
    kept_column: str,
    *,
    rolled_back: str,
    partitions: Sequence[TargetTable] = (),
) -> list[TextClause]:
    """The statements that make `previous` the embedding column again and keep `current` as `kept_column`.

    It can be swapped anew by whoever agrees to it: its note remembers `rolled_back`, the moment of this exchange.
    `partitions` are those whose current column may have privileges or a NOT NULL of its own.
    """
    assert previous.note is not None
    assert current.note is not None
    note = previous.note
    if note.maintained:
        restored = note_statement(
            target, target.embedding_column, ColumnNote("current", note.space, comment=note.comment, text=note.text)
        )
    elif note.space is not None:
        restored = note_statement(
            target, target.embedding_column, ColumnNote("legacy", note.space, comment=note.comment)
        )
    else:
        restored = comment_statement(target, target.embedding_column, note.comment)
    kept_note = replace(
        current.note,
        role="new",
        embedding_column=target.embedding_column,
        comment=None,
        rolled_back=rolled_back,
    )
    return [
        *_make_room_statements(target, previous.name, partitions),
        *rename_statements(target, previous.name, kept_column),
        restored,
        note_statement(target, kept_column, kept_note),
        trigger_function_statement(
            target, kept_column, also_empty=target.embedding_column if note.maintained else None
        ),
    ]


def _make_room_statements(target: TargetTable, incoming: str, partitions: Sequence[TargetTable]) -> list[TextClause]:
    """`incoming` gets the privileges of the embedding column, which loses its NOT NULL: code that knows one of them writes on."""
    tables = (target, *partitions)
    return [
        *(copy_column_grants_statement(table, target.embedding_column, incoming) for table in tables),
        *(table.sql("ALTER TABLE {table} ALTER COLUMN {embedding} DROP NOT NULL") for table in tables),
    ]


def rename_statements(target: TargetTable, incoming: str, outgoing: str) -> list[TextClause]:
    """`incoming` becomes the embedding column, which becomes `outgoing`; by way of a third name, as both may be one."""
    rename = "ALTER TABLE {table} RENAME COLUMN {old} TO {new}"
    embedding, between = target.embedding_column, target.exchange_column
    return [
        target.sql(rename, old=embedding, new=between),
        target.sql(rename, old=incoming, new=embedding),
        target.sql(rename, old=between, new=outgoing),
    ]
