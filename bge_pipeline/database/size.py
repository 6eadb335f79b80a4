"""How much disk a table takes."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.partitions import STORED
from bge_pipeline.database.target import TargetTable


def table_bytes(connection: Connection, target: TargetTable) -> int:
    """Size of the table, all its partitions, with indexes and out-of-line values."""
    statement = text(
        f"SELECT COALESCE(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c WHERE c.oid IN ({STORED})"
    )
    return int(connection.execute(statement, {"table": str(target)}).scalar_one())
