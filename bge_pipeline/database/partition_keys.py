"""Ids of a partitioned table, over which PostgreSQL keeps a unique index only together with the columns that divide it.

Divided by the id itself, the id alone is unique, as anywhere. Divided by another column, a primary key `(id, created_at)` lets an
id come twice. Such a table is taken where the ids are made to differ, by a sequence or as UUIDs, and while none comes twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.row_key import OF_INDEX
from bge_pipeline.database.sql import quote, shortened
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import TargetTableError

_DIVIDED_BY = """
SELECT pg_get_partkeydef(p.partrelid) AS definition, 0 = ANY (p.partattrs::int2[]) AS by_expression,
       ARRAY(SELECT a.attname::text FROM unnest(p.partattrs::int2[]) WITH ORDINALITY k (number, place)
             JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.number ORDER BY k.place) AS columns
FROM pg_partitioned_table p WHERE p.partrelid = CAST(:table AS regclass)
"""
_IS_MADE_TO_DIFFER = """
SELECT a.attidentity <> '' OR t.typname = 'uuid' OR COALESCE(pg_get_expr(f.adbin, f.adrelid), '') ~ 'nextval\\(|uuid'
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
WHERE a.attrelid = CAST(:table AS regclass) AND a.attname = :column
"""
_IS_KEPT_APART = f"""
SELECT EXISTS (
  SELECT FROM pg_index i
  WHERE i.indrelid = CAST(:table AS regclass) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
    AND {OF_INDEX} = CAST(:columns AS text[]))
"""


@dataclass(frozen=True)
class Division:
    """What a partitioned table is divided by.

    Attributes:
        definition: `RANGE (created_at)`, as PostgreSQL prints it.
        columns: those in it by name.
        by_expression: something in it is no column, and PostgreSQL allows no unique index at all.
    """

    definition: str
    columns: Sequence[str]
    by_expression: bool


def division_of(connection: Connection, target: TargetTable) -> Division | None:
    """What the table is divided by; None of one that is not partitioned."""
    row = connection.execute(text(_DIVIDED_BY), {"table": str(target)}).one_or_none()
    return None if row is None else Division(row.definition, row.columns, row.by_expression)


def is_made_to_differ(connection: Connection, target: TargetTable, column: str) -> bool:
    """Whether an identity or a sequence numbers the rows, or their ids are UUIDs."""
    values = {"table": str(target), "column": column}
    return bool(connection.execute(text(_IS_MADE_TO_DIFFER), values).scalar_one())


def is_kept_apart(connection: Connection, target: TargetTable) -> bool:
    """Whether a unique index on the key alone keeps rows apart."""
    values = {"table": str(target), "columns": list(target.id_columns)}
    return bool(connection.execute(text(_IS_KEPT_APART), values).scalar_one())


def shared_id_refusal(connection: Connection, target: TargetTable) -> TargetTableError | None:
    """The refusal where two rows have the same id; reads all ids of a table without a unique index on them alone."""
    if is_kept_apart(connection, target):
        return None
    statement = target.sql("SELECT {id_text} FROM {table} GROUP BY {ids} HAVING count(*) > 1 LIMIT 1")
    shared = connection.execute(statement).scalar_one_or_none()
    if shared is None:
        return None
    return TargetTableError(
        f"several rows of {target} have {str(target.key)!r} {shared}: expected a different one in every row of all partitions",
        state="nothing was changed",
        next_step=f"give all but one of them another id, or name a column that differs: {number_rows(connection, target)}",
    )


def ways_out(connection: Connection, target: TargetTable, division: Division) -> list[str]:
    """What to run where a partitioned table has no usable key: one of these."""
    if division.by_expression:
        why = f"{target} is divided by an expression, {division.definition}, and PostgreSQL allows no unique index over it"
        return [f"{why}: divide a table by columns alone, and move the rows there"]
    name = target.id_columns[0]
    ways = [f"by a column that numbers the rows: {number_rows(connection, target)}"]
    if is_made_to_differ(connection, target, name):
        ways.insert(
            0, f"an index that begins with {name!r}, built while writers wait: {_index(target, name, division)}"
        )
    return ways


def number_rows(connection: Connection, target: TargetTable) -> str:
    """The statements that number the rows of a partitioned table, and the setting that names the column."""
    division, column = division_of(connection, target), "row_number"
    if division is None:
        return ""
    sequence = quote(target.schema, shortened(f"{target.table}_{column}"))
    return (
        f"CREATE SEQUENCE {sequence}; ALTER TABLE {target} ADD COLUMN {column} bigint NOT NULL DEFAULT nextval('{sequence}'); "
        f"{_index(target, column, division)} then TARGET_ID_COLUMN={column} "
        "(the second statement writes all partitions anew under ACCESS EXCLUSIVE)"
    )


def _index(target: TargetTable, column: str, division: Division) -> str:
    columns = dict.fromkeys([column, *division.columns])
    return f"CREATE UNIQUE INDEX ON {target} ({', '.join(map(quote, columns))});"
