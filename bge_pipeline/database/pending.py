"""Pending rows: text to embed, no vector yet, not in quarantine. NULL is the only to-do list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.ids import IdRange
from bge_pipeline.database.target import TargetTable

# Both halves of the partial index's predicate; queries repeat it word for word so that the planner sees the match.
# The collation makes the match cheap, and possible where the column's own collation is nondeterministic.
HAS_TEXT = "({text}::text COLLATE \"C\") ~ '\\S'"
LACKS_VECTOR = f"{{column}} IS NULL AND {HAS_TEXT}"
TEXT_DIGEST = "md5(convert_to(t.{text}::text, 'UTF8'))::uuid"
# A quarantined row is one whose text is still the one that failed. The digest is made for rows in quarantine alone:
# `IS DISTINCT FROM` cannot become a join's key, for which that of every row would be made.
IS_QUARANTINED_TEXT = f"q.row_id = t.{{id}} AND NOT q.text_digest IS DISTINCT FROM {TEXT_DIGEST}"
IN_QUARANTINE = f"EXISTS (SELECT FROM {{quarantine}} q WHERE {IS_QUARANTINED_TEXT})"
# An unlogged table cannot be read on a standby.
_USABLE = """
SELECT EXISTS (
  SELECT FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
  WHERE c.oid = to_regclass(:name) AND c.relkind = 'r' AND a.attname = 'text_digest' AND NOT a.attisdropped
    AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery()))
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
    return bool(connection.execute(text(_USABLE), {"name": target.quarantine}).scalar_one())


def waits(connection: Connection, target: TargetTable) -> str:
    """The condition that a row `t` is pending in `{column}`, for `TargetTable.sql`."""
    return f"{LACKS_VECTOR} AND NOT {IN_QUARANTINE}" if quarantine_is_usable(connection, target) else LACKS_VECTOR


def pending_index_statement(target: TargetTable, column: str, index: str) -> TextClause:
    """The statement that builds the partial index of rows without a vector."""
    return target.sql(
        f"CREATE INDEX CONCURRENTLY {{index}} ON {{table}} ({{id}}) WHERE {LACKS_VECTOR}", index=index, column=column
    )


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


def has_more_pending_than(connection: Connection, target: TargetTable, column: str, limit: int) -> bool:
    """Whether more than `limit` rows are pending; stops at the first that settles it.

    The order keeps the planner at the partial index: by the statistics of a column that was analysed while it was
    empty, reading the table would find a pending row at once.
    """
    statement = target.sql(
        f"SELECT {{id}} FROM {{table}} t WHERE {waits(connection, target)} ORDER BY {{id}} LIMIT 1 OFFSET :limit",
        column=column,
    )
    return connection.execute(statement, {"limit": limit}).first() is not None


def count_rows(connection: Connection, target: TargetTable, column: str) -> Counts:
    """Every row of the table, counted in one statement, so that the numbers fit each other; reads the whole table once."""
    in_quarantine = IN_QUARANTINE if quarantine_is_usable(connection, target) else "false"
    statement = target.sql(
        "SELECT count(*) AS rows, count({column}) AS embedded, "
        f"count(*) FILTER (WHERE {LACKS_VECTOR}) AS lacking, "
        f"count(*) FILTER (WHERE {{column}} IS NULL AND {in_quarantine} AND {HAS_TEXT}) AS quarantined FROM {{table}} t",
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
