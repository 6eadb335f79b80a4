"""Objects that depend on the old column: a rename does not stop them, they follow the old vectors silently."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.functions import find_functions
from bge_pipeline.database.publications import find_publications

# pg_depend knows what is bound to the column by number; the text of function bodies it does not know. The last condition
# leaves out this project's own index of pending rows. What stands on a partition follows its column too; what a partition has
# since the whole table has it is named once.
_BOUND = """
WITH own AS (SELECT CAST(:oid AS oid) AS oid UNION SELECT relid::oid FROM pg_partition_tree(:oid)),
dependency AS (
  SELECT DISTINCT classid, objid FROM pg_depend
  JOIN pg_attribute held ON held.attrelid = refobjid AND held.attnum = refobjsubid
  WHERE refclassid = 'pg_class'::regclass AND held.attname = :column AND deptype IN ('n', 'a')
    AND refobjid IN (SELECT oid FROM own)
)
SELECT CASE c.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END AS kind, c.oid::regclass::text AS name
FROM dependency d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class c ON c.oid = r.ev_class AND c.oid NOT IN (SELECT oid FROM own)
UNION
SELECT 'rule', r.rulename FROM dependency d
JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.ev_class IN (SELECT oid FROM own)
UNION
SELECT 'generated column', a.attname FROM dependency d
JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum AND a.attgenerated <> ''
UNION
SELECT 'policy', p.polname FROM dependency d JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
UNION
SELECT 'trigger', t.tgname FROM dependency d JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
WHERE t.tgparentid = 0 AND t.tgname <> :own_trigger
UNION
SELECT 'constraint', o.conname FROM dependency d
JOIN pg_constraint o ON d.classid = 'pg_constraint'::regclass AND o.oid = d.objid AND o.contype <> 'n'
  AND o.coninhcount = 0
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
  AND NOT c.relispartition
  AND NOT (left(c.relname, 3) = 'ix_' AND position('IS NULL' IN COALESCE(pg_get_expr(i.indpred, i.indrelid), '')) > 0)
ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Dependent:
    """An object that reads, guards or carries the old column.

    `bound` objects follow the old column through the rename. The others go by its name and so meet the new vectors:
    functions whose text mentions table and column, and publications of whole rows, whose subscribers need the new column
    before expand adds it. They are named for a person to check.
    """

    kind: str
    name: str
    bound: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def find_bound(connection: Connection, table: TableDescription, column: str) -> list[Dependent]:
    """Everything but vector indexes that is bound to `column`."""
    number = table.columns[column].number
    values = {"oid": table.oid, "column": column, "own_trigger": table.target.vector_trigger}
    rows = connection.execute(text(_BOUND), values)
    publications = [p for p in find_publications(connection, table) if p.columns is not None and number in p.columns]
    return [
        *(Dependent(row.kind, row.name, bound=True) for row in rows),
        *(Dependent("publication", publication.name, bound=True) for publication in publications),
    ]


def find_dependents(connection: Connection, table: TableDescription, column: str) -> list[Dependent]:
    """What is bound to `column`, then what goes by its name."""
    bound = find_bound(connection, table, column)
    named = [dependent.name for dependent in bound]
    functions = [f.name for f in find_functions(connection, table, table.columns[column]) if f.reads]
    publications = [publication.name for publication in find_publications(connection, table)]
    return [
        *bound,
        *(Dependent("function", name, bound=False) for name in functions if name not in named),
        *(Dependent("publication", name, bound=False) for name in publications if name not in named),
    ]
