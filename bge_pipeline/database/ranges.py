"""Cutting a table into id ranges that hold about the same number of rows, whatever gaps the ids have."""

from __future__ import annotations

from itertools import pairwise

from sqlalchemy import Connection

from bge_pipeline.database.ids import Id, IdKind, IdRange
from bge_pipeline.database.target import TargetTable


def cut_ranges(
    connection: Connection, target: TargetTable, kind: IdKind, rows: int, *, above: Id | None = None
) -> list[IdRange]:
    """Cut the table, or what lies at and above the id `above`, into ranges of `rows` rows; one index-only scan.

    The last range may hold fewer rows and ends just above the greatest id, so that later rows begin a range of
    their own.
    """
    starts = [
        kind.plain(value)
        for value in connection.execute(
            target.sql(
                "SELECT {id} FROM (SELECT {id}, row_number() OVER (ORDER BY {id}) AS n FROM {table} "
                + ("WHERE {id} >= :above" if above is not None else "")
                + ") numbered WHERE (n - 1) % :rows = 0 ORDER BY {id}"
            ),
            {"rows": rows} | ({"above": above} if above is not None else {}),
        ).scalars()
    ]
    if not starts:
        return []
    greatest = connection.execute(target.sql("SELECT {id} FROM {table} ORDER BY {id} DESC LIMIT 1")).scalar_one()
    end = kind.successor(kind.plain(greatest))
    bounds = [starts[0], *(start for start in starts[1:] if start != end), end]
    if above is not None:
        bounds[0] = above
    elif kind.least is not None:
        bounds[0] = kind.least
    return [IdRange(lower, upper, kind) for lower, upper in pairwise(bounds)]
