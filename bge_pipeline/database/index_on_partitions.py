"""Building an index of a table beside live traffic, whether or not it is partitioned.

PostgreSQL builds no index of a partitioned table CONCURRENTLY. So it is built on each partition by itself. Then an empty one is
made on the whole table, which no search notices before it is valid, and the partitions' are attached, each in a short transaction
of its own: no partition is locked while another is waited for. Partitions that come later get it from PostgreSQL, built while
they are attached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_build import BuildResult, build_concurrently, rebuild_concurrently
from bge_pipeline.database.indexes import (
    BESIDE_TRAFFIC,
    OVER_PARTITIONS,
    depends_on_column,
    index_bytes,
    index_is_valid,
)
from bge_pipeline.database.locks import in_short_transaction
from bge_pipeline.database.partitions import Partition, is_partitioned, partitions_below, stored_tables
from bge_pipeline.database.sql import quote
from bge_pipeline.database.table_lock import lock_out_maintenance
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ChangedMeanwhile, IndexBuildFailed

if TYPE_CHECKING:
    from bge_pipeline.settings import LockSettings

logger = logging.getLogger(__name__)

_ROUNDS = 10
"""Attempts to find the partitions as they were when the last index was built; in each, those that came are indexed."""
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"
# A partition of a partition is in the tree too; the index of one that came meanwhile has a name of PostgreSQL's.
_IS_ATTACHED = """
SELECT EXISTS (SELECT FROM pg_partition_tree(to_regclass(:index)) t JOIN pg_index i ON i.indexrelid = t.relid
               WHERE i.indrelid = to_regclass(:partition))
"""
_IS_THERE = (
    "SELECT EXISTS (SELECT FROM pg_partition_tree(CAST(:table AS regclass)) WHERE relid = to_regclass(:partition))"
)
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
        LockNotAcquired: the partitions' indexes are built, and one partition was never free to attach its own.
    """
    with database.autocommit() as connection:
        divided = is_partitioned(connection, target)
        is_there = divided and bool(index_is_valid(connection, target.schema, recipe.name(target)))
    if not divided or is_there:  # the name of a valid index is compared with the column there
        return _build(database, target, recipe, on_progress)
    built: dict[TargetTable, BuildResult] = {}
    for _ in range(_ROUNDS):
        with database.autocommit() as connection:
            partitions = [
                one for one in stored_tables(connection, target) if not _is_attached(connection, target, recipe, one)
            ]
        for number, partition in enumerate(partitions, start=1):
            if partition not in built:
                told = _told(on_progress, f"partition {number} of {len(partitions)}")
                result = _build_unless_gone(database, target, partition, recipe, told)
                built |= {} if result is None else {partition: result}
        try:
            _make_whole(database, settings, target, recipe)
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


def _make_whole(database: Database, settings: LockSettings, target: TargetTable, recipe: IndexRecipe) -> None:
    """Make the index over the partitions, and attach theirs one by one; goes on where an earlier call stopped.

    Raises:
        _PartitionCame: one was there before the index over all of them that has none yet.
    """
    name = recipe.name(target)

    def step(purpose: str, work: Callable[[Connection], None]) -> None:
        def in_turn(connection: Connection) -> None:
            connection.execute(text(_TURN), {"name": f"{target}.{name}"})
            work(connection)

        in_short_transaction(database, settings, purpose, in_turn)

    step(f"making index {name}", lambda connection: _make_over_all(connection, target, recipe))
    with database.autocommit() as connection:
        partitions = partitions_below(connection, target)
    for partition in partitions:
        step(f"attaching the index of {partition.table} to {name}", partial(_attach, target, recipe, partition))
    with database.autocommit() as connection:
        if not index_is_valid(connection, target.schema, name):
            raise _PartitionCame(f"a partition of {target} has come meanwhile")


def _make_over_all(connection: Connection, target: TargetTable, recipe: IndexRecipe) -> None:
    """Make the index of the partitioned table, unless it is there: every partition that comes from then on gets it."""
    name = recipe.name(target)
    if index_is_valid(connection, target.schema, name) is None:
        connection.execute(recipe.over_partitions(target))
    elif recipe.column is not None and not depends_on_column(connection, target, name, recipe.column):
        raise ChangedMeanwhile(
            f"index {name} is there and is not on column {recipe.column!r} of {target}",
            state="the index was left as it is",
            next_step="bge-pipeline status says where the migration stands; rename the index if it is your own",
        )


def _attach(target: TargetTable, recipe: IndexRecipe, partition: Partition, connection: Connection) -> None:
    """Attach the index of one partition to that of the table that it is in.

    Its locks on both keep partitions from going and a vacuum from the index, and neither readers nor writers wait for them.

    Raises:
        _PartitionCame: the partition has no whole index yet.
    """
    table, parent = partition.table, partition.parent
    lock_out_maintenance(connection, parent, table)
    is_there = connection.execute(text(_IS_THERE), {"table": str(target), "partition": str(table)}).scalar_one()
    if not is_there or _is_attached(connection, target, recipe, table):
        return
    is_valid = index_is_valid(connection, table.schema, recipe.name(table))
    if partition.is_leaf and not is_valid:
        raise _PartitionCame(f"{table} has become a partition of {target} meanwhile")
    if is_valid is None:
        connection.execute(recipe.over_partitions(table))
    connection.execute(
        target.sql(
            "ALTER INDEX {whole} ATTACH PARTITION {part}",
            whole=(parent.schema, recipe.name(parent)),
            part=(table.schema, recipe.name(table)),
        )
    )


def _is_attached(connection: Connection, target: TargetTable, recipe: IndexRecipe, partition: TargetTable) -> bool:
    values = {"index": quote(target.schema, recipe.name(target)), "partition": str(partition)}
    return bool(connection.execute(text(_IS_ATTACHED), values).scalar_one())


def _told(on_progress: Callable[[BuildProgress], None] | None, where: str) -> Callable[[BuildProgress], None] | None:
    if on_progress is None:
        return None
    return lambda progress: on_progress(replace(progress, phase=f"{where}: {progress.phase}"))
