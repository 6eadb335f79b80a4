"""How large a table is: on disk, and in rows as its statistics have it."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.partitions import STORED
from bge_pipeline.database.target import TargetTable

# As the planner does it: as many rows a page as there were at the last ANALYZE or VACUUM, times the pages of now.
_ROWS = f"""
SELECT CASE WHEN bool_or(c.reltuples < 0) THEN NULL ELSE COALESCE(sum(
         CASE WHEN c.relpages > 0
         THEN c.reltuples::float8 / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::int)
         ELSE c.reltuples END), 0) END
FROM pg_class c WHERE c.oid IN ({STORED})
"""
_PAGES = f"""
SELECT COALESCE(sum(pg_relation_size(c.oid) / current_setting('block_size')::int), 0) FROM pg_class c WHERE c.oid IN ({STORED})
"""


def table_bytes(connection: Connection, target: TargetTable) -> int:
    """Size of the table, all its partitions, with indexes and out-of-line values."""
    statement = text(
        f"SELECT COALESCE(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c WHERE c.oid IN ({STORED})"
    )
    return int(connection.execute(statement, {"table": str(target)}).scalar_one())


def table_pages(connection: Connection, target: TargetTable) -> int:
    """Pages of the rows, in all partitions, without indexes and out-of-line values."""
    return int(connection.execute(text(_PAGES), {"table": str(target)}).scalar_one())


def rows_now(connection: Connection, target: TargetTable) -> int | None:
    """About how many rows there are, without reading one; None where some of the table has never been analysed."""
    rows = connection.execute(text(_ROWS), {"table": str(target)}).scalar_one()
    return int(rows) if rows is not None else None
