"""Every vector column of a database, with what a migration would have to know of its table. Reads the catalog alone."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.keys import usable_keys
from bge_pipeline.database.notes import ColumnNote

_VECTOR_COLUMNS = """
SELECT c.oid, n.nspname AS schema, c.relname AS table, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type,
       NULLIF(a.atttypmod, -1) AS dimensions,
       CASE WHEN c.relkind = 'p' THEN (
         SELECT sum(NULLIF(l.reltuples, -1)) FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid WHERE p.isleaf)
       ELSE NULLIF(c.reltuples, -1) END::bigint AS rows,
       col_description(c.oid, a.attnum) AS comment,
       ARRAY(SELECT b.attname::text FROM pg_attribute b
             WHERE b.attrelid = c.oid AND b.attnum > 0 AND NOT b.attisdropped ORDER BY b.attnum) AS columns,
       ARRAY(SELECT b.attname::text FROM pg_attribute b JOIN pg_type u ON u.oid = b.atttypid
             WHERE b.attrelid = c.oid AND b.attnum > 0 AND NOT b.attisdropped
               AND u.typname IN ('text', 'varchar', 'bpchar', 'citext') ORDER BY b.attnum) AS texts,
       (SELECT x.relname || ' (' || m.amname || ')' FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
        JOIN pg_am m ON m.oid = x.relam
        WHERE (i.indrelid = c.oid OR i.indrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
          AND i.indisvalid AND m.amname NOT IN ('btree', 'hash', 'gin', 'gist', 'spgist', 'brin')
          AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = (
                        SELECT attnum FROM pg_attribute WHERE attrelid = i.indrelid AND attname = a.attname))
        ORDER BY i.indrelid <> c.oid, 1 LIMIT 1) AS vector_index
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
WHERE t.typname IN ('vector', 'halfvec', 'sparsevec') AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_'
ORDER BY n.nspname, c.relname, a.attname
"""


@dataclass(frozen=True)
class VectorColumn:
    """A vector column and its table.

    Attributes:
        schema, table, column: plain names.
        type: for example `vector(1536)`.
        dimensions: None where the type does not say.
        rows: the planner's estimate; None where the table was never analysed.
        columns: all of the table, in order.
        texts: those of them that hold text.
        keys: what tells its rows from each other, as `usable_keys` has it.
        index: name and method of a vector index on the column, None where there is none.
        note: what this project recorded with the column.
    """

    schema: str
    table: str
    column: str
    type: str
    dimensions: int | None
    rows: int | None
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    index: str | None
    note: ColumnNote | None


def find_vector_columns(connection: Connection) -> list[VectorColumn]:
    """Those that search reads; columns that this project fills or keeps beside them are left out."""
    found = [
        VectorColumn(
            row.schema, row.table, row.column, row.type, row.dimensions, row.rows,
            tuple(row.columns), tuple(row.texts), tuple(usable_keys(connection, row.oid)), row.vector_index,
            ColumnNote.from_comment(row.comment),
        )
        for row in connection.execute(text(_VECTOR_COLUMNS)).all()
    ]  # fmt: skip
    return [one for one in found if one.note is None or one.note.role not in ("new", "previous")]
