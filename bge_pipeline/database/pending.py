"""Pending rows: text to embed, no vector yet, not in quarantine. NULL is the only to-do list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause

from bge_pipeline.database.ranges import IdRange
from bge_pipeline.database.target import TargetTable

# Both halves of the partial index's predicate; queries repeat it word for word so that the planner sees the match.
# The collation makes the match cheap, and possible where the column's own collation is nondeterministic.
HAS_TEXT = "({text}::text COLLATE \"C\") ~ '\\S'"
LACKS_VECTOR = f"{{column}} IS NULL AND {HAS_TEXT}"
NOT_QUARANTINED = "NOT EXISTS (SELECT FROM {quarantine} q WHERE q.row_id = t.{id})"


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


def pending_index_statement(target: TargetTable, column: str, index: str) -> TextClause:
    """The statement that builds the partial index of rows without a vector."""
    return target.sql(
        f"CREATE INDEX CONCURRENTLY {{index}} ON {{table}} ({{id}}) WHERE {LACKS_VECTOR}", index=index, column=column
    )


def count_pending(connection: Connection, target: TargetTable, column: str, id_range: IdRange | None = None) -> int:
    """Pending rows of the table, or of one id range; answered by the partial index."""
    return int(connection.execute(*_select(target, "count(*)", column, id_range)).scalar_one())


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
        f"SELECT {{id}} FROM {{table}} t WHERE {LACKS_VECTOR} AND {NOT_QUARANTINED} ORDER BY {{id}} LIMIT 1 OFFSET :limit",
        column=column,
    )
    return connection.execute(statement, {"limit": limit}).first() is not None


def count_rows(connection: Connection, target: TargetTable, column: str, *, has_quarantine: bool = True) -> Counts:
    """Every row of the table, counted; reads the whole table once. Before expand there is no quarantine."""
    statement = target.sql(
        "SELECT count(*) AS rows, count({column}) AS embedded, "
        f"count(*) FILTER (WHERE {LACKS_VECTOR}) AS lacking FROM {{table}}",
        column=column,
    )
    row = connection.execute(statement).one()
    pending = count_pending(connection, target, column) if has_quarantine else row.lacking
    return Counts(
        rows=row.rows,
        embedded=row.embedded,
        pending=pending,
        quarantined=row.lacking - pending,
        without_text=row.rows - row.embedded - row.lacking,
    )


def _select(target: TargetTable, what: str, column: str, id_range: IdRange | None) -> tuple[TextClause, dict[str, Any]]:
    where = f"{LACKS_VECTOR} AND {NOT_QUARANTINED}"
    values: dict[str, Any] = {}
    if id_range is not None:
        where += f" AND {id_range.condition}"
        values |= id_range.values
    return target.sql(f"SELECT {what} FROM {{table}} t WHERE {where}", column=column), values
