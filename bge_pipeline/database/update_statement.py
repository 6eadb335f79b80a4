"""The statements that write vectors: the staging table, and the UPDATE of the rows that are still as they were read."""

from __future__ import annotations

from sqlalchemy import TextClause, text

from bge_pipeline.database.ids import IdKind, in_template
from bge_pipeline.database.row_key import RowKey
from bge_pipeline.database.sql import quote

_STAGING = "bge_pipeline_staging"
COPY_INTO_STAGING = f"COPY pg_temp.{_STAGING} FROM STDIN (FORMAT binary)"

# By number, since names go round: in a backfill that slept through somebody's swap, this one may be another column's now.
# Read by the snapshot of the UPDATE, which by then has locked the table against the next exchange.
IS_THE_COLUMN = (
    "(SELECT attnum FROM pg_catalog.pg_attribute "
    "WHERE attrelid = CAST(:table AS pg_catalog.regclass) AND attname = :column) = :number"
)
_POSTGRES_16 = 160_000
"""STORAGE became part of CREATE TABLE with PostgreSQL 16."""

# A partition that was taken out meanwhile is somebody else's table, whose columns nobody exchanges.
_IS_IN_PLACE = (
    "EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(CAST(:partition AS pg_catalog.regclass)) "
    "WHERE relid = CAST(:table AS pg_catalog.regclass))"
)
_SAME_TEXT = "pg_catalog.md5(pg_catalog.convert_to({l_text}::text, 'UTF8'))::uuid = s.digest"


# The subquery locks the rows that nobody else has locked and whose text is as it was read; they cannot change after that.
# A row whose version has changed may still have its text: one that the application touches all the time must not wait for ever.
def update_template(kind: IdKind, key: RowKey, *, of_partition: bool = False) -> str:
    """The UPDATE for `TargetTable.sql`, with the values of a column's table, name and number.

    Of a partition the text says that a row is the one that was read, and its place that it is the one that was locked: the id
    may not be kept apart by an index (`database.partition_keys`), and no row may get the vector of another.

    It returns for each row whether it stayed in its page, or NULL where a trigger took the vector away again. Nothing counts
    them on the server: an UPDATE in a WITH is refused where the table has a rule.
    """
    is_staged = kind.same(_columns("l", key), kind.staged)
    is_locked = kind.same(_columns("t", key), _columns("s", key.under("id")))
    is_the_column = IS_THE_COLUMN
    is_as_read, is_the_row = f"(l.xmin = s.version OR {_SAME_TEXT})", ""
    if of_partition:
        is_the_column += f" AND {_IS_IN_PLACE}"
        is_as_read, is_the_row = _SAME_TEXT, " AND t.ctid = s.place"
    return f"""
UPDATE {{table}} t SET {{column}} = s.vector FROM (
  SELECT {{l_ids_as_id}}, s.vector, l.ctid AS place FROM pg_temp.{_STAGING} s
  JOIN {{table}} l ON {is_staged}
  WHERE l.{{column}} IS NULL AND {is_the_column} AND {is_as_read}
  FOR NO KEY UPDATE OF l SKIP LOCKED
) s WHERE {is_locked}{is_the_row}
RETURNING CASE WHEN t.{{column}} IS NOT NULL THEN {_page("t.ctid")} = {_page("s.place")} END
"""


def _columns(row: str, key: RowKey) -> list[str]:
    return [f"{row}.{in_template(quote(name))}" for name in key.columns]


def _page(place: str) -> str:
    """Of a place of a row, as its binary form begins, which costs less than taking the written form apart."""
    return f"pg_catalog.substr(pg_catalog.tidsend({place}), 1, 4)"


def staging_table(kind: IdKind, dimensions: int, server: int) -> TextClause:
    """The statement that makes it, in a session that has none, on a server of that version (`server_version_num`)."""
    # Without out-of-line storage there is no second table and index to empty at every commit.
    fits_a_page = dimensions <= 1_900
    storage = " STORAGE PLAIN" if fits_a_page and server >= _POSTGRES_16 else ""
    key = ", ".join(f"{name} {sql_type}" for name, sql_type in kind.staging_columns)
    return text(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {_STAGING} ({key}, version xid, digest uuid, "
        f"vector vector({dimensions}){storage}) ON COMMIT DELETE ROWS"
    )
