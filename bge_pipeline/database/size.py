"""How large a table is: on disk, and in rows as its statistics have it."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.target import TargetTable

# As the planner does it: as many rows a page as there were at the last ANALYZE or VACUUM, times the pages of now. A partitioned
# table has no pages of its own, and its ANALYZE counts the rows of all partitions.
_ROWS = """
SELECT CASE WHEN reltuples < 0 THEN NULL WHEN relpages > 0 THEN
         reltuples::float8 / relpages * (pg_relation_size(oid) / current_setting('block_size')::int)
       ELSE reltuples END
FROM pg_class WHERE oid = CAST(:name AS regclass)
"""
_PAGES = "SELECT pg_relation_size(CAST(:name AS regclass)) / current_setting('block_size')::int"


def table_bytes(connection: Connection, target: TargetTable) -> int:
    """Size of the table with its indexes and out-of-line values."""
    statement = target.sql("SELECT pg_total_relation_size(CAST(:name AS regclass))")
    return int(connection.execute(statement, {"name": str(target)}).scalar_one())


def table_pages(connection: Connection, target: TargetTable) -> int:
    """Pages of the rows, without indexes and out-of-line values; 0 for a partitioned table."""
    return int(connection.execute(text(_PAGES), {"name": str(target)}).scalar_one())


def estimated_rows(connection: Connection, target: TargetTable) -> int | None:
    """About how many rows there are, without reading one; None where the table has never been analysed."""
    rows = connection.execute(text(_ROWS), {"name": str(target)}).scalar_one()
    return int(rows) if rows is not None else None
