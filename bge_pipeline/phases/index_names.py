"""The name of the vector index, which stays with the column that search reads: by it applications know their index.

LlamaIndex, Haystack and vecs look for an index by its name as they open a table, and build another one where it is not there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column, relation_exists
from bge_pipeline.database.indexes import Index, IndexShape, definition_name, depends_on_column, vector_indexes_on
from bge_pipeline.database.partition_indexes import partition_indexes
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.phases.state import MigrationState, space_of
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)

NAMES_STAY = "the partitions' indexes keep their names; nothing goes by them"


def name_to_take_over(connection: Connection, state: MigrationState) -> str | None:
    """Name of the index by which the application searches, or searched before expand dropped it; None where there is none."""
    definitions = [
        index.definition
        for index in vector_indexes_on(connection, state.table.oid, state.table.embedding.number)
        if index.valid
    ]
    if state.new is not None and state.new.note is not None:
        definitions += state.new.note.dropped_indexes
    return next((definition_name(one) for one in definitions if IndexShape.of(one) is not None), None)


def take_over_name(connection: Connection, target: TargetTable, name: str | None, index: str, previous: str) -> str:
    """Give the index of the column that search reads now the old one's name, and that one a name that says whose it is.

    Args:
        connection: in the transaction of the swap, which holds the table's lock and has renamed the columns.
        target: the table.
        name: what `name_to_take_over` said before that; None changes nothing.
        index: the index of the new column.
        previous: the column of the old vectors, under its new name, there or dropped.

    Returns:
        The index's name from now on: its own where the other one is not to be had.
    """
    if name is None or name == index:
        return index
    aside = target.index_aside(name, previous)
    is_there = relation_exists(connection, quote(target.schema, name))
    if is_there and (not depends_on_column(connection, target, name, previous) or _is_taken(connection, target, aside)):
        logger.warning("index %s keeps its name: %s or %s belongs to something else", index, name, aside)
        return index
    if is_there:
        _rename(connection, target, name, aside)
    _rename(connection, target, index, name)
    return name


def give_back_name(
    connection: Connection, state: MigrationState, previous: Column, current: Column, kept_column: str
) -> None:
    """The way back of `take_over_name`, in the transaction of the rollback and before it renames the columns."""
    target, space = state.table.target, space_of(current)
    assert space is not None
    old = {index.name for index in vector_indexes_on(connection, state.table.oid, previous.number)}
    for index in vector_indexes_on(connection, state.table.oid, current.number):
        aside = target.index_aside(index.name, previous.name)
        own = target.vector_index(kept_column, space.fingerprint, index.method)
        if aside in old and not _is_taken(connection, target, own):
            _rename(connection, target, index.name, own)
            _rename(connection, target, aside, index.name)


def indexes_of_partitions(
    connection: Connection, target: TargetTable, old: str, new: str
) -> list[tuple[TargetTable, Index, Index]]:
    """The partitions that have a vector index on both columns, with the two; to be asked before the columns are exchanged."""
    of_old = dict(partition_indexes(connection, target, old))
    found = []
    for partition, on_new in partition_indexes(connection, target, new):
        olds = [one for one in of_old.get(partition, ()) if one.valid and IndexShape.of(one.definition) is not None]
        if olds and on_new:
            found.append((partition, olds[0], on_new[0]))
    return found


def take_over_partition_names(
    connection: Connection, indexes: Sequence[tuple[TargetTable, Index, Index]], previous: str
) -> None:
    """The same for the indexes of partitions, in a transaction behind that of the swap: there may be thousands.

    Nobody but a person looks for these by name; where it is interrupted, some keep theirs.
    """
    for partition, old, new in indexes:
        aside = partition.index_aside(old.name, previous)
        if _is_taken(connection, partition, new.name) and not _is_taken(connection, partition, aside):
            if _is_taken(connection, partition, old.name):
                _rename(connection, partition, old.name, aside)
            _rename(connection, partition, new.name, old.name)


def give_back_partition_names(
    connection: Connection,
    indexes: Sequence[tuple[TargetTable, Index, Index]],
    previous: str,
    kept_column: str,
    space: EmbeddingSpace,
) -> None:
    """The way back of `take_over_partition_names`, behind the transaction of the rollback."""
    for partition, old, new in indexes:
        own = partition.vector_index(kept_column, space.fingerprint, new.method)
        if old.name == partition.index_aside(new.name, previous) and not _is_taken(connection, partition, own):
            _rename(connection, partition, new.name, own)
            _rename(connection, partition, old.name, new.name)


def restored_name(connection: Connection, target: TargetTable, name: str, column: Column) -> str:
    """The name under which an index on `column` that expand dropped is built again: another one has its own, after a swap."""
    if column.name != target.embedding_column and depends_on_column(connection, target, name, target.embedding_column):
        return target.index_aside(name, column.name)
    return name


def _is_taken(connection: Connection, target: TargetTable, name: str) -> bool:
    return relation_exists(connection, quote(target.schema, name))


def _rename(connection: Connection, target: TargetTable, old: str, new: str) -> None:
    connection.execute(target.sql("ALTER INDEX {old} RENAME TO {new}", old=(target.schema, old), new=new))
