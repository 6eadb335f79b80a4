"""Which relations can be migrated, ordinary and partitioned tables, and for every other one the way out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import TargetTableError

_READ_BY_VIEW = """
SELECT DISTINCT n.nspname::text AS schema, c.relname::text AS name
FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.ev_class = CAST(:table AS regclass) AND d.refobjid <> r.ev_class ORDER BY 1, 2
"""
_SERVER = """
SELECT s.srvname AS server, (
  SELECT string_agg(option_name || '=' || option_value, ' ' ORDER BY option_name)
  FROM pg_options_to_table(s.srvoptions) WHERE option_name IN ('host', 'port', 'dbname')) AS address
FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = CAST(:table AS regclass)
"""
_FOREIGN_PARTITIONS = """
SELECT c.oid::regclass::text AS name, p.parentrelid::regclass::text AS parent
FROM pg_partition_tree(CAST(:table AS regclass)) p JOIN pg_class c ON c.oid = p.relid
WHERE c.relkind = 'f' ORDER BY 1
"""
_ROOT = """
SELECT n.nspname::text AS schema, c.relname::text AS name, pg_get_partition_constraintdef(CAST(:table AS regclass)) AS bounds
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_partition_root(CAST(:table AS regclass))
"""
_INHERITANCE = """
SELECT inhparent::regclass::text AS parent, inhrelid::regclass::text AS child FROM pg_inherits
WHERE CAST(:table AS regclass) IN (inhparent, inhrelid) ORDER BY 1, 2
"""
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


def require_migratable(connection: Connection, target: TargetTable, row: Any) -> None:
    """Refuse what has no rows of its own, or cannot get a column of its own.

    Args:
        connection: to look for the way out.
        target: what TARGET_* name.
        row: its `relkind`, and whether it `is_partition` or `is_inherited`.

    Raises:
        TargetTableError: says what it is, and what to name or to run instead.
    """
    values = {"table": str(target)}
    if row.is_partition:
        raise _partition(connection, target)
    if row.relkind not in ("r", "p"):
        raise TargetTableError(
            f"{target} is {_KINDS.get(row.relkind, 'not a table')}: expected a table that holds its rows itself, "
            "ordinary or partitioned",
            state="nothing was changed",
            next_step=_instead(connection, target, row.relkind),
        )
    if row.is_inherited:
        edges = connection.execute(text(_INHERITANCE), values).all()
        apart = " ".join(f"ALTER TABLE {edge.child} NO INHERIT {edge.parent};" for edge in edges)
        raise TargetTableError(
            f"{target} is part of an inheritance hierarchy ({', '.join(f'{e.child} of {e.parent}' for e in edges)}), in which "
            "no key holds for all tables: expected a table that stands alone, or one that is partitioned declaratively",
            state="nothing was changed",
            next_step=f"take it apart: {apart} then migrate each table; or make them partitions: CREATE TABLE ... "
            "PARTITION BY ..., and ALTER TABLE ... ATTACH PARTITION for each",
        )
    foreign = connection.execute(text(_FOREIGN_PARTITIONS), values).all() if row.relkind == "p" else []
    if foreign:
        raise TargetTableError(
            f"{', '.join(one.name for one in foreign)} of {target} are foreign tables: expected partitions that this server "
            "holds, on which indexes can be built",
            state="nothing was changed",
            next_step=" ".join(f"ALTER TABLE {one.parent} DETACH PARTITION {one.name};" for one in foreign)
            + " then migrate those where they are",
        )


def _partition(connection: Connection, target: TargetTable) -> TargetTableError:
    root = connection.execute(text(_ROOT), {"table": str(target)}).one()
    alone = ""
    if root.bounds is not None and "satisfies_hash_partition" not in root.bounds:  # None: it takes every row
        alone = f", with TARGET_WHERE={root.bounds} where only the rows of this one are to get vectors of the new model"
    return TargetTableError(
        f"{target} is a partition of {quote(root.schema, root.name)}: PostgreSQL adds columns to all partitions together",
        state="nothing was changed",
        next_step=f"TARGET_SCHEMA={root.schema} TARGET_TABLE={root.name}{alone}",
    )


def _instead(connection: Connection, target: TargetTable, kind: str) -> str | None:
    if kind == "f":
        server = connection.execute(text(_SERVER), {"table": str(target)}).one()
        where = f"{server.server} ({server.address})" if server.address else server.server
        return (
            f"migrate the table where it is: DATABASE_URL of the server {where}; after the swap there, give the foreign table "
            f"its new type here: ALTER FOREIGN TABLE {target} ALTER COLUMN {quote(target.embedding_column)} TYPE vector(...);"
        )
    if kind not in ("v", "m"):
        return None
    read = connection.execute(text(_READ_BY_VIEW), {"table": str(target)}).all()
    named = " or ".join(f"TARGET_SCHEMA={row.schema} TARGET_TABLE={row.name}" for row in read)
    if not named:
        return None
    return f"migrate the table that it reads: {named}; then drop the view and create it again, on the new column"
