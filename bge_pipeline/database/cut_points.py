"""Where to cut a large table without reading it: by its statistics where ids are dense, by a sample of its pages elsewhere.

A table of a billion rows has an index of 20 GB on its ids, and counting by it reads that, and while rows change the table too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from sqlalchemy import Connection, text

from bge_pipeline.database.ids import INTEGERS, Id, IdKind
from bge_pipeline.database.sampling import sampled
from bge_pipeline.database.size import rows_now, table_pages
from bge_pipeline.database.target import TargetTable

COUNTED_ROWS = 5_000_000
"""Smaller tables are counted, which takes a second or two."""
DENSE = 2
"""So many ids a row at most: a unique integer key has at most as many rows as ids, so that no range can hold more than this times
what it should."""
PAGES_OF_A_RANGE = 16
"""Pages that are read for each range; where the ids of a page are neighbours, its size then varies by a quarter, sqrt(1/16)."""
_NUMBER, _MET, _POINT = "bge_pipeline_number", "bge_pipeline_met", "bge_pipeline_point"
"""Names that no column of a table has."""
_LARGEST_SAMPLE = 0.5
"""Share of a table's pages from which on counting costs no more."""

# Of a table with children, those of all of them. A unique column has no most common values, and so all rows are in the histogram.
_HISTOGRAM = """
SELECT histogram_bounds::text::bigint[] FROM pg_stats
WHERE schemaname = :schema AND tablename = :table AND attname = :column AND histogram_bounds IS NOT NULL
ORDER BY inherited DESC LIMIT 1
"""
_ENDS = "SELECT (SELECT min({id}) FROM {table}) AS least, (SELECT max({id}) FROM {table}) AS greatest"
_THERE = f"""
SELECT DISTINCT found.id FROM unnest(CAST(:points AS bigint[])) {_POINT},
LATERAL (SELECT {{t_id}} AS id FROM {{table}} t WHERE {{t_id}} >= {_POINT} ORDER BY {{t_id}} LIMIT 1) found ORDER BY found.id
"""


def cut_points(connection: Connection, target: TargetTable, kind: IdKind, rows: int) -> list[Id] | None:
    """Ids of the table with about `rows` rows between two neighbours, in order; None where it has to be counted.

    That is where the table is small or has never been analysed, and where only rows that meet a condition are embedded.
    """
    in_all = rows_now(connection, target)
    if in_all is None or in_all < max(COUNTED_ROWS, rows) or target.condition is not None:
        return None
    if kind is INTEGERS:
        points = _by_statistics(connection, target, in_all, rows)
        if points is not None:
            return points
    return _by_sample(connection, target, kind, in_all, rows)


def _by_statistics(connection: Connection, target: TargetTable, in_all: int, rows: int) -> list[Id] | None:
    """By the histogram of the ids and a look into the index for each cut; None where ids have gaps."""
    names = {"schema": target.schema, "table": target.table, "column": target.id_columns[0]}
    histogram = connection.execute(text(_HISTOGRAM), names).scalar_one_or_none()
    if histogram is None:
        return None
    ends = connection.execute(target.sql(_ENDS)).one()
    if ends.least is None:
        return None
    bounds = [bound for bound in histogram if ends.least < bound < ends.greatest]
    if len(bounds) < 2:
        return None
    in_a_bucket = in_all / (len(histogram) - 1)
    if any(upper - lower > DENSE * in_a_bucket for lower, upper in pairwise(bounds)):
        return None
    before, after = bounds[0] - ends.least, ends.greatest - bounds[-1]
    if before + after > in_all + 2 * in_a_bucket:
        return None
    # What was added since the table was analysed is in none of the buckets; of it, every id counts as a row.
    buckets = [(ends.least, bounds[0], float(before))]
    buckets += [(lower, upper, in_a_bucket) for lower, upper in pairwise(bounds)]
    buckets += [(bounds[-1], ends.greatest, float(after))]
    found = connection.execute(target.sql(_THERE), {"points": list(_evenly(buckets, rows))}).scalars()
    return [point for point in found if point > ends.least]


def _evenly(buckets: Sequence[tuple[int, int, float]], rows: int) -> Iterator[int]:
    """Ids with `rows` rows between two neighbours, where those of each bucket (lower, upper, rows) are spread evenly."""
    passed, due = 0.0, float(rows)
    for lower, upper, in_bucket in buckets:
        while in_bucket and due <= passed + in_bucket:
            yield lower + int((upper - lower) * ((due - passed) / in_bucket))
            due += rows
        passed += in_bucket


def _by_sample(connection: Connection, target: TargetTable, kind: IdKind, in_all: int, rows: int) -> list[Id] | None:
    """By the ids in some random pages; None where these would be most of them."""
    pages, ranges = table_pages(connection, target), round(in_all / rows)
    wanted = ranges * PAGES_OF_A_RANGE
    if wanted > pages * _LARGEST_SAMPLE:
        return None
    percent = 100.0 * wanted / pages
    statement = target.sql(
        f"SELECT {kind.as_it_travels} FROM (SELECT {{ids}}, row_number() OVER (ORDER BY {{ids}}) AS {_NUMBER}, "
        f"count(*) OVER () AS {_MET} FROM {{table}} {sampled(connection, target, percent)}) numbered "
        f"WHERE {_NUMBER} * :ranges / {_MET} > ({_NUMBER} - 1) * :ranges / {_MET} AND {_NUMBER} < {_MET} ORDER BY {_NUMBER}"
    )
    values = {"percent": percent, "ranges": ranges, "seed": 0}
    return [kind.plain(value) for value in connection.execute(statement, values).scalars()]
