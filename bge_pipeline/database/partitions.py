"""The partitions of a declaratively partitioned target table: which tables hold its rows, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.target import TargetTable

# An ordinary table is in no tree, and then holds its rows itself; a partition is the leaf of its own.
STORED = """
SELECT c.oid FROM pg_class c
WHERE c.relkind <> 'p' AND c.oid IN (
  SELECT relid FROM pg_partition_tree(CAST(:table AS regclass)) UNION SELECT CAST(:table AS regclass))
"""
"""The relations that hold the rows of `:table`, which may be partitioned."""

_STORED_TABLES = f"""
SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid = CAST(:table AS regclass) AS is_itself
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({STORED}) ORDER BY 1, 2
"""
_TREE = """
SELECT n.nspname::text AS schema, c.relname::text AS name, p.isleaf AS is_leaf,
       p.level = 1 AS is_at_the_top, m.nspname::text AS parent_schema, u.relname::text AS parent
FROM pg_partition_tree(CAST(:table AS regclass)) p
JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class u ON u.oid = p.parentrelid JOIN pg_namespace m ON m.oid = u.relnamespace
WHERE p.level > 0 ORDER BY p.level, 1, 2
"""
_WITH_OWN = """
SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_partition_tree(CAST(:table AS regclass)) p
JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = :column
WHERE p.level > 0 AND (a.attnotnull OR a.attacl IS NOT NULL) ORDER BY p.level, 1, 2
"""
_READ = f"""
SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid IN ({STORED}) OR c.oid = to_regclass(:quarantine)
"""
_STORED_COUNT = f"SELECT count(*) FROM pg_class c WHERE c.oid IN ({STORED})"
_IS_PARTITIONED = "SELECT relkind = 'p' FROM pg_class WHERE oid = CAST(:table AS regclass)"
_ROWS = f"SELECT COALESCE(sum(GREATEST(reltuples, 0)), 0)::bigint FROM pg_class WHERE oid IN ({STORED})"
_MOST_ROWS = f"SELECT COALESCE(max(GREATEST(reltuples, 0)), 0)::bigint FROM pg_class WHERE oid IN ({STORED})"
_HEAP = f"SELECT COALESCE(sum(pg_relation_size(c.oid)), 0)::bigint FROM pg_class c WHERE c.oid IN ({STORED})"


@dataclass(frozen=True)
class Partition:
    """A table of the tree below a partitioned one: one that holds rows, or one that is divided again.

    Attributes:
        table: itself.
        parent: the partitioned table that it is directly in.
        is_leaf: whether it holds rows.
    """

    table: TargetTable
    parent: TargetTable
    is_leaf: bool


def is_partitioned(connection: Connection, target: TargetTable) -> bool:
    """Whether the table is divided into partitions, and holds no row itself."""
    return bool(connection.execute(text(_IS_PARTITIONED), {"table": str(target)}).scalar_one())


def stored_tables(connection: Connection, target: TargetTable) -> list[TargetTable]:
    """The tables that hold the rows: the partitions, whatever their depth, or the table itself where it has none of them."""
    found = connection.execute(text(_STORED_TABLES), {"table": str(target)}).all()
    return [target if row.is_itself else target.at(row.schema, row.name) for row in found]


def count_stored(connection: Connection, target: TargetTable) -> int:
    """How many tables hold the rows; 1 for an ordinary one."""
    return int(connection.execute(text(_STORED_COUNT), {"table": str(target)}).scalar_one())


def relations_read(connection: Connection, target: TargetTable) -> frozenset[tuple[int, str, str]]:
    """Oid, schema and name of each table that is read for the pending rows: those that hold rows, and the quarantine."""
    values = {"table": str(target), "quarantine": target.quarantine}
    return frozenset((row[0], row[1], row[2]) for row in connection.execute(text(_READ), values))


def partitions_below(connection: Connection, target: TargetTable) -> list[Partition]:
    """Everything below a partitioned table, each one behind the table that it is in; nothing below an ordinary one."""
    return [
        Partition(
            target.at(row.schema, row.name),
            target if row.is_at_the_top else target.at(row.parent_schema, row.parent),
            row.is_leaf,
        )
        for row in connection.execute(text(_TREE), {"table": str(target)})
    ]


def estimated_rows(connection: Connection, target: TargetTable) -> int:
    """The planner's estimate of the rows: a partitioned table has none of its own before somebody analyses it by name."""
    return int(connection.execute(text(_ROWS), {"table": str(target)}).scalar_one())


def most_rows(connection: Connection, target: TargetTable) -> int:
    """The planner's estimate of the rows of the largest partition, or of the table itself: what one index is to hold."""
    return int(connection.execute(text(_MOST_ROWS), {"table": str(target)}).scalar_one())


def partitions_with_own(connection: Connection, target: TargetTable, column: str) -> list[TargetTable]:
    """The partitions, also those divided again, whose `column` has privileges or a NOT NULL: they may have these by themselves.

    Each stands behind the one that it is in, without whose NOT NULL it may be without its own.
    """
    rows = connection.execute(text(_WITH_OWN), {"table": str(target), "column": column})
    return [target.at(row.schema, row.name) for row in rows]


def heap_bytes(connection: Connection, target: TargetTable) -> int:
    """Size of the rows, without indexes and out-of-line values."""
    return int(connection.execute(text(_HEAP), {"table": str(target)}).scalar_one())
