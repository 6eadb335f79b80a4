"""Pending rows: text to embed, no vector yet, not in quarantine. NULL is the only to-do list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg2.errors import QueryCanceled
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.indexes import BESIDE_TRAFFIC
from bge_pipeline.database.target import TargetTable

# Both halves of the partial index's predicate; queries repeat it word for word so that the planner sees the match.
# The collation makes the match cheap, and possible where the column's own collation is nondeterministic.
IS_TEXT = "(text::text COLLATE \"C\") ~ '\\S'"
HAS_TEXT = "({text}::text COLLATE \"C\") ~ '\\S'"
LACKS_VECTOR = f"{{column}} IS NULL AND {{only_part}}{HAS_TEXT}"
TEXT_DIGEST = "md5(convert_to({t_text}::text, 'UTF8'))::uuid"
# A quarantined row is one whose text is still the one that failed. The digest is made for rows in quarantine alone:
# `IS DISTINCT FROM` cannot become a join's key, for which that of every row would be made.
IS_QUARANTINED_TEXT = f"{{quarantined_id}} = {{t_id}} AND NOT q.text_digest IS DISTINCT FROM {TEXT_DIGEST}"
IN_QUARANTINE = f"EXISTS (SELECT FROM {{quarantine}} q WHERE {IS_QUARANTINED_TEXT})"
# An unlogged table cannot be read on a standby.
_USABLE = """
SELECT EXISTS (
  SELECT FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
  WHERE c.oid = to_regclass(:name) AND c.relkind = 'r' AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery())
  HAVING bool_or(a.attname = 'text_digest') AND count(*) FILTER (WHERE a.attname ~ '^row_id(_[0-9]+)?$') = :columns)
"""

_INDEX = """
SELECT EXISTS (
  SELECT FROM pg_index i JOIN pg_depend d ON d.objid = i.indexrelid AND d.classid = 'pg_class'::regclass
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
  WHERE i.indrelid = CAST(:name AS regclass) AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
    AND i.indisvalid AND i.indpred IS NOT NULL AND a.attname = :column AND NOT a.attnum = ANY(i.indkey))
"""


@dataclass(frozen=True)
class Counts:
    """Rows of the target table by what is left to do.

    Attributes:
        rows: all rows.
        embedded: rows that have a vector.
        pending: rows that wait for one.
        quarantined: rows whose text could not be embedded.
        without_text: rows with nothing to embed.
    """

    rows: int
    embedded: int
    pending: int
    quarantined: int
    without_text: int


def quarantine_is_usable(connection: Connection, target: TargetTable) -> bool:
    """Whether the quarantine is there, of today's shape, and readable; where it is not, no row counts as quarantined."""
    values = {"name": target.quarantine, "columns": len(target.id_columns)}
    return bool(connection.execute(text(_USABLE), values).scalar_one())


def waits(connection: Connection, target: TargetTable) -> str:
    """The condition that a row `t` is pending in `{column}`, for `TargetTable.sql`."""
    return f"{LACKS_VECTOR} AND NOT {IN_QUARANTINE}" if quarantine_is_usable(connection, target) else LACKS_VECTOR


def has_pending_index(connection: Connection, target: TargetTable, column: str) -> bool:
    """Whether the partial index of rows without a vector is there, and whole. It is built when few rows are left, since a
    column in the predicate of an index keeps updates from being HOT."""
    return bool(connection.execute(text(_INDEX), {"name": str(target), "column": column}).scalar_one())


def pending_index_statement(target: TargetTable, column: str, index: str, *, head: str = BESIDE_TRAFFIC) -> TextClause:
    """The statement that builds the partial index of rows without a vector.

    An expression stays out of it: where it failed for a row, the application could not write that row.
    """
    predicate = LACKS_VECTOR if target.row_text.is_column else "{only_part}{column} IS NULL"
    return target.sql(f"{head} ({{ids}}) WHERE {predicate}", index=index, column=column)


def count_pending(connection: Connection, target: TargetTable, column: str, id_range: IdRange | None = None) -> int:
    """Pending rows of the table, or of one id range; answered by the partial index."""
    where = waits(connection, target)
    values: dict[str, Any] = {}
    if id_range is not None:
        where += f" AND {id_range.condition}"
        values |= id_range.values
    statement = target.sql(f"SELECT count(*) FROM {{table}} t WHERE {where}", column=column)
    return int(connection.execute(statement, values).scalar_one())


def count_lacking(connection: Connection, target: TargetTable, column: str) -> int:
    """Rows of the table with text and without a vector in `column`, in quarantine or not: what a search in it misses."""
    statement = target.sql(f"SELECT count(*) FROM {{table}} WHERE {LACKS_VECTOR}", column=column)
    return int(connection.execute(statement).scalar_one())


def count_lacking_within(
    database: Database, target: TargetTable, column: str, milliseconds: int, *, most: int | None = None
) -> int | None:
    """The same, counted up to `most`; None where that takes longer than it may."""
    statement = target.sql(
        f"SELECT count(*) FROM (SELECT FROM {{table}} WHERE {LACKS_VECTOR} LIMIT :most) found", column=column
    )
    try:
        with database.transaction() as connection:
            connection.execute(text(f"SET LOCAL statement_timeout = {milliseconds}"))
            return int(connection.execute(statement, {"most": most}).scalar_one())
    except DBAPIError as error:
        if not isinstance(error.orig, QueryCanceled):
            raise
        return None


def has_more_pending_than(connection: Connection, target: TargetTable, column: str, limit: int) -> bool:
    """Whether more than `limit` rows are pending; stops at the first that settles it."""
    return count_pending_at_most(connection, target, column, limit + 1) > limit


def count_pending_at_most(connection: Connection, target: TargetTable, column: str, limit: int) -> int:
    """Pending rows, counted up to `limit`.

    Where there is the partial index, the order keeps the planner at it: by the statistics of a column that was analysed while
    it was empty, reading the table would find a pending row at once. Where there is none, the table is read.
    """
    order = "ORDER BY {ids}" if has_pending_index(connection, target, column) else ""
    statement = target.sql(
        f"SELECT count(*) FROM (SELECT FROM {{table}} t WHERE {waits(connection, target)} {order} LIMIT :limit) found",
        column=column,
    )
    return int(connection.execute(statement, {"limit": limit}).scalar_one())


def pending_share(connection: Connection, target: TargetTable, column: str) -> float:
    """About which share of the table's rows lack a vector, from a hundredth of its pages; 0 where none was met."""
    statement = target.sql(
        f"SELECT count(*) FILTER (WHERE {LACKS_VECTOR})::float8 / GREATEST(count(*), 1) "
        "FROM {table} TABLESAMPLE SYSTEM (1)",
        column=column,
    )
    return float(connection.execute(statement).scalar_one())


def count_rows(connection: Connection, target: TargetTable, column: str) -> Counts:
    """Every row, of the part if there is one, counted in one statement, so that the numbers fit each other; reads all once."""
    in_quarantine = IN_QUARANTINE if quarantine_is_usable(connection, target) else "false"
    statement = target.sql(
        "SELECT count(*) AS rows, count({column}) AS embedded, "
        f"count(*) FILTER (WHERE {LACKS_VECTOR}) AS lacking, "
        f"count(*) FILTER (WHERE {{column}} IS NULL AND {in_quarantine} AND {HAS_TEXT}) AS quarantined "
        "FROM {table} t WHERE {in_part}",
        column=column,
    )
    row = connection.execute(statement).one()
    return Counts(
        rows=row.rows,
        embedded=row.embedded,
        pending=row.lacking - row.quarantined,
        quarantined=row.quarantined,
        without_text=row.rows - row.embedded - row.lacking,
    )
