"""Objects that depend on the old column: a rename does not stop them, they follow the old vectors silently."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription

# pg_depend knows what is bound to the column by number; the text of function bodies it does not know.
_BOUND = """
WITH dependency AS (
  SELECT DISTINCT classid, objid FROM pg_depend
  WHERE refclassid = 'pg_class'::regclass AND refobjid = :oid AND refobjsubid = :number AND deptype IN ('n', 'a')
)
SELECT CASE c.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END AS kind, c.oid::regclass::text AS name
FROM dependency d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class c ON c.oid = r.ev_class AND c.oid <> :oid
UNION
SELECT 'generated column', a.attname FROM dependency d
JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum AND a.attgenerated <> ''
UNION
SELECT 'policy', p.polname FROM dependency d JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
UNION
SELECT 'trigger', t.tgname FROM dependency d JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
UNION
SELECT 'constraint', o.conname FROM dependency d
JOIN pg_constraint o ON d.classid = 'pg_constraint'::regclass AND o.oid = d.objid AND o.contype <> 'n'
UNION
SELECT 'statistics', s.stxname FROM dependency d
JOIN pg_statistic_ext s ON d.classid = 'pg_statistic_ext'::regclass AND s.oid = d.objid
UNION
SELECT 'function', p.oid::regprocedure::text FROM dependency d
JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
UNION
SELECT 'index', i.indexrelid::regclass::text FROM dependency d
JOIN pg_index i ON d.classid = 'pg_class'::regclass AND i.indexrelid = d.objid
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
WHERE m.amname IN ('btree', 'hash', 'gin', 'gist', 'spgist', 'brin')
ORDER BY 1, 2
"""
_PUBLISHED = """
SELECT p.pubname AS name FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
WHERE r.prrelid = :oid AND r.prattrs IS NOT NULL AND :number = ANY (r.prattrs::int2[])
"""
_MENTIONED = """
SELECT p.oid::regprocedure::text AS name
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.prokind IN ('f', 'p')
  AND position(:table IN p.prosrc) > 0 AND position(:column IN p.prosrc) > 0
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
  AND p.proname <> :own_function
ORDER BY 1
"""
_POSTGRES_15 = 150_000
"""Column lists of publications came with PostgreSQL 15."""


@dataclass(frozen=True)
class Dependent:
    """An object that reads or guards the old column.

    `bound` objects follow the old column through the rename. The others, functions whose text mentions table and
    column, are resolved by name when they run and so meet the new vectors: they are named for a person to check.
    """

    kind: str
    name: str
    bound: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def find_dependents(connection: Connection, table: TableDescription, column: str) -> list[Dependent]:
    """Everything but vector indexes that depends on `column`, first what is bound to it."""
    values = {"oid": table.oid, "number": table.columns[column].number}
    found = [Dependent(row.kind, row.name, bound=True) for row in connection.execute(text(_BOUND), values)]
    version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    if version >= _POSTGRES_15:
        found += [
            Dependent("publication", row.name, bound=True) for row in connection.execute(text(_PUBLISHED), values)
        ]
    mentioned = connection.execute(
        text(_MENTIONED),
        {"table": table.target.table, "column": column, "own_function": table.target.trigger},
    )
    named = {dependent.name for dependent in found}
    found += [Dependent("function", row.name, bound=False) for row in mentioned if row.name not in named]
    return found
