"""A migration of a part of a table (TARGET_WHERE): what it leaves as it is, and what the application is told, in words."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable


def told_part(connection: Connection, target: TargetTable, column: str) -> str | None:
    """What the migration means for the rows outside the part, before anything is done; None where it takes all rows."""
    if target.condition is None:
        return None
    counted = target.sql("SELECT count(*) AS rows, count(*) FILTER (WHERE {in_part}) AS part FROM {table}")
    row = connection.execute(counted).one()
    return (
        f"TARGET_WHERE takes {row.part:,} of {row.rows:,} rows. The other {row.rows - row.part:,} get no vector of the new "
        f"model, and in a column that all share, search would not find them: so the columns are not exchanged, and "
        f"{target.embedding_column!r} stays as it is for every row. {reading(target, column)}"
    )


def reading(target: TargetTable, column: str) -> str:
    """How the application reads the part's own column."""
    return (
        f"The part is searched in a column of its own, with queries of the new model: SELECT ... FROM {target} WHERE "
        f"({(target.condition or 'true').strip()}) ORDER BY {quote(column)} <=> <vector> LIMIT ...;"
    )
