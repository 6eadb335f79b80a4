"""Building an index of a table beside live traffic, whether or not it is partitioned.

PostgreSQL builds no index of a partitioned table CONCURRENTLY. So it is built on each partition by itself, and then, in one short
transaction, an empty one is made on every partitioned table of the tree, to which the partitions' are attached. Partitions that
come later get it from PostgreSQL, built while they are attached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_build import BuildResult, build_concurrently, rebuild_concurrently
from bge_pipeline.database.indexes import BESIDE_TRAFFIC, OVER_PARTITIONS, index_bytes, index_is_valid
from bge_pipeline.database.locks import in_short_transaction
from bge_pipeline.database.partitions import is_partitioned, partitions_below, stored_tables
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import IndexBuildFailed

if TYPE_CHECKING:
    from bge_pipeline.settings import LockSettings

logger = logging.getLogger(__name__)

_ROUNDS = 10
"""Attempts to find the partitions as they were when the last index was built; in each, those that came are indexed."""
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"
_WHOLE = """
SELECT n.nspname::text, c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = ANY (CAST(:names AS name[])) AND i.indisvalid
"""
_INDEX_OF = """
SELECT n.nspname::text AS schema, t.relname::text AS relation, c.relname::text AS name
FROM pg_partition_tree(CAST(:index AS regclass)) p JOIN pg_index i ON i.indexrelid = p.relid
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE p.isleaf ORDER BY 1, 2
"""


@dataclass(frozen=True)
class IndexRecipe:
    """An index that a table is to have, and each of its partitions where it has some.

    Attributes:
        name: of the index of a table.
        statement: builds the index of that name on a table; the last argument is how it begins (`indexes.BESIDE_TRAFFIC`).
        column: that the index is on, or whose rows it counts; None: the name alone says enough.
        memory_bytes: what a build needs in maintenance_work_mem.
        workers: processes beside the first that may take part; None: as many as the server's own setting lets.
    """

    name: Callable[[TargetTable], str]
    statement: Callable[[TargetTable, str, str], TextClause]
    column: str | None
    memory_bytes: int = 0
    workers: int | None = None

    def beside_traffic(self, table: TargetTable) -> TextClause:
        """The statement that builds it on a table that holds its rows itself."""
        return self.statement(table, self.name(table), BESIDE_TRAFFIC)

    def over_partitions(self, table: TargetTable) -> TextClause:
        """The statement that makes it on a partitioned table."""
        return self.statement(table, self.name(table), OVER_PARTITIONS)


class _PartitionCame(Exception):
    """A partition without the index is there by now."""


def build_index_on(
    database: Database,
    settings: LockSettings,
    target: TargetTable,
    recipe: IndexRecipe,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildResult:
    """Build the index unless a valid one of its name is there; what is there of partitions is not built again.

    Args:
        database: where the target table is.
        settings: for how long the attaching may wait for a lock, and how often.
        target: the table.
        recipe: the index.
        on_progress: told how far the build is.

    Raises:
        IndexBuildFailed: the server could not; search is as it was.
        ChangedMeanwhile: an index of that name is on another column.
        LockNotAcquired: the partitions' indexes are built, and the table was never free to attach them.
    """
    with database.autocommit() as connection:
        divided = is_partitioned(connection, target)
        is_there = divided and bool(index_is_valid(connection, target.schema, recipe.name(target)))
    if not divided or is_there:  # the name of a valid index is compared with the column there
        return _build(database, target, recipe, on_progress)
    built: dict[TargetTable, BuildResult] = {}
    for _ in range(_ROUNDS):
        with database.autocommit() as connection:
            partitions = stored_tables(connection, target)
        for number, partition in enumerate(partitions, start=1):
            if partition not in built:
                told = _told(on_progress, f"partition {number} of {len(partitions)}")
                result = _build_unless_gone(database, target, partition, recipe, told)
                built |= {} if result is None else {partition: result}
        try:
            in_short_transaction(
                database,
                settings,
                f"attaching the partitions' indexes to {recipe.name(target)}",
                lambda connection: _attach(connection, target, recipe),
            )
        except _PartitionCame as one:
            logger.info("%s; indexing that too", one)
            continue
        with database.autocommit() as connection:
            size = index_bytes(connection, target.schema, recipe.name(target))
        return BuildResult(
            recipe.name(target),
            any(one.built for one in built.values()) or not built,
            sum(one.seconds for one in built.values()),
            size,
            max((one.maintenance_work_mem_mb for one in built.values()), default=0),
        )
    raise IndexBuildFailed(
        f"index {recipe.name(target)}: partitions of {target} came faster than they could be indexed, {_ROUNDS} times",
        state="the indexes of the partitions that were there are built, search is as it was",
        next_step="run the same command again when no partitions are attached",
    )


def rebuild_index_on(database: Database, target: TargetTable, recipe: IndexRecipe) -> None:
    """Make an index anew that is there, on each partition if there are some, without the entries of rows that have left it.

    Raises:
        IndexBuildFailed: the server could not.
    """
    with database.autocommit() as connection:
        if not is_partitioned(connection, target):
            names = {target: recipe.name(target)}
        else:
            values = {"index": quote(target.schema, recipe.name(target))}
            names = {
                target.at(row.schema, row.relation): row.name for row in connection.execute(text(_INDEX_OF), values)
            }
    for table, name in names.items():
        statement = recipe.statement(table, name, BESIDE_TRAFFIC)
        assert recipe.column is not None
        rebuild_concurrently(database, table, name, statement, column=recipe.column)


def _build(
    database: Database,
    table: TargetTable,
    recipe: IndexRecipe,
    on_progress: Callable[[BuildProgress], None] | None,
) -> BuildResult:
    return build_concurrently(
        database,
        table,
        recipe.name(table),
        recipe.beside_traffic(table),
        column=recipe.column,
        memory_bytes=recipe.memory_bytes,
        workers=recipe.workers,
        on_progress=on_progress,
    )


def _build_unless_gone(
    database: Database,
    target: TargetTable,
    partition: TargetTable,
    recipe: IndexRecipe,
    on_progress: Callable[[BuildProgress], None] | None,
) -> BuildResult | None:
    """Build it on one partition; None where somebody has detached or dropped that meanwhile."""
    try:
        return _build(database, partition, recipe, on_progress)
    except IndexBuildFailed as error:
        with database.autocommit() as connection:
            if partition in stored_tables(connection, target):
                raise
        logger.info("%s is no partition of %s any more: %s", partition, target, error.message)
        return None


def _attach(connection: Connection, target: TargetTable, recipe: IndexRecipe) -> None:
    """Make the index over the partitions, and attach theirs.

    The lock of each statement that makes one keeps partitions of that table from coming and going until the transaction ends.

    Raises:
        _PartitionCame: one was there before the lock that has no index yet; nothing was attached.
    """
    name = recipe.name(target)
    connection.execute(text(_TURN), {"name": f"{target}.{name}"})
    is_valid = index_is_valid(connection, target.schema, name)
    if is_valid:
        return
    if is_valid is False:
        raise IndexBuildFailed(
            f"index {name} of the partitioned table {target} is there and invalid: not every partition's is attached to it",
            state="search is as it was",
            next_step=f"if nobody is building it, DROP INDEX {quote(target.schema, name)}; then run the same command again",
        )
    connection.execute(recipe.over_partitions(target))
    partitions = partitions_below(connection, target)
    names = [recipe.name(partition.table) for partition in partitions]
    whole = {tuple(row) for row in connection.execute(text(_WHOLE), {"names": names})}
    for partition, of_partition in zip(partitions, names, strict=True):
        table = partition.table
        if not partition.is_leaf:
            connection.execute(recipe.over_partitions(table))
        elif (table.schema, of_partition) not in whole:
            raise _PartitionCame(f"{table} has become a partition of {target} meanwhile")
        connection.execute(
            target.sql(
                "ALTER INDEX {whole} ATTACH PARTITION {part}",
                whole=(partition.parent.schema, recipe.name(partition.parent)),
                part=(table.schema, of_partition),
            )
        )
    if not index_is_valid(connection, target.schema, name):
        raise _PartitionCame(f"a partition of a partition of {target} has come meanwhile")


def _told(on_progress: Callable[[BuildProgress], None] | None, where: str) -> Callable[[BuildProgress], None] | None:
    if on_progress is None:
        return None
    return lambda progress: on_progress(replace(progress, phase=f"{where}: {progress.phase}"))
