"""Samples of the table's rows: their texts and their vectors, from random pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import as_constant, from_driver
from bge_pipeline.database.partitions import count_stored, estimated_rows
from bge_pipeline.database.pending import HAS_TEXT, IN_QUARANTINE, quarantine_is_usable
from bge_pipeline.database.size import table_pages
from bge_pipeline.database.target import TargetTable

_DIMENSIONS_SAMPLE_ROWS = 2_000
_FEWEST_PAGES = 50
"""Of a sample, however few rows are wanted: each page is chosen by itself, and of one or two there may be none."""
_FEWEST_PAGES_OF_A_PARTITION = 20
_UNTYPED = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = CAST(:table AS regclass) AND attname = ANY(:columns) AND atttypmod < 0
"""
SHUFFLED = "ORDER BY md5({id_text} || CAST(:seed AS text))"
"""Sampled pages come in the order of the table; a limit would favour its beginning."""


@dataclass(frozen=True)
class SampledRows:
    """Rows with their vectors.

    Attributes:
        ids: n ids, as the driver gives them.
        texts: n texts.
        vectors: for each column asked for, float32 (n, dimensions).
    """

    ids: Sequence[Any]
    texts: Sequence[str]
    vectors: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.ids)


def sample_texts(connection: Connection, target: TargetTable, rows: int, *, seed: int = 0) -> list[str]:
    """About `rows` texts drawn from random pages of the table, for the same seed the same ones, but as `sampled` says.

    None that is in quarantine, as it cannot be embedded.
    """
    percent = sample_percent(connection, target, rows)
    embeddable = f"NOT {IN_QUARANTINE}" if quarantine_is_usable(connection, target) else "true"
    statement = target.sql(
        f"SELECT {{text}} FROM {{table}} t {sampled(connection, target, percent)} "
        f"WHERE {{only_part}}{HAS_TEXT} AND {embeddable} {SHUFFLED} LIMIT :rows"
    )
    return list(connection.execute(statement, {"percent": percent, "seed": seed, "rows": rows}).scalars())


def sample_percent(connection: Connection, target: TargetTable, rows: int) -> float:
    """Percentage of the table's pages for TABLESAMPLE that holds `rows` rows or more of those that are embedded."""
    if target.condition is not None:
        planned = connection.execute(target.sql("EXPLAIN (FORMAT JSON) SELECT FROM {table} WHERE {in_part}"))
        estimate = int(planned.scalar_one()[0]["Plan"]["Plan Rows"])
    else:
        estimate = estimated_rows(connection, target)
    if estimate < 4 * rows:
        return 100.0  # a table never analysed is read whole, up to the limit
    # Twice what is wanted, since pages differ.
    return min(100.0, max(200.0 * rows / estimate, 100.0 * _FEWEST_PAGES / max(1, table_pages(connection, target))))


def sampled(connection: Connection, target: TargetTable, percent: float) -> str:
    """The TABLESAMPLE of `:percent` of the pages, the same ones for the same `:seed`, but for many small partitions.

    PostgreSQL chooses pages by number and seed, and so the same numbers in every partition: of small ones all would give a page,
    or none. There the seed is left to it, which takes another one for each partition.
    https://www.postgresql.org/docs/current/tablesample-method.html
    """
    tables = count_stored(connection, target)
    of_each = table_pages(connection, target) / max(1, tables) * percent / 100
    depends_on_seed = tables <= 1 or percent >= 100 or of_each >= _FEWEST_PAGES_OF_A_PARTITION
    return f"TABLESAMPLE SYSTEM (CAST(:percent AS float4)){' REPEATABLE (:seed)' if depends_on_seed else ''}"


def sample_vectors(
    connection: Connection,
    target: TargetTable,
    columns: Sequence[str],
    rows: int,
    *,
    id_range: IdRange | None = None,
    seed: int = 0,
) -> SampledRows:
    """About `rows` rows that have a vector in every one of `columns`: of the id range, or from random pages of the table.

    Of a column of type `vector` without dimensions, rows of those dimensions that most of its vectors have.
    """
    source, values = _source(connection, target, rows, id_range, seed)
    return _with_vectors(
        connection, target, columns, f"{source} AND {{present}} {SHUFFLED} LIMIT :rows", values | {"seed": seed}
    )


def among(ids: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """A condition of `target.sql` that the primary key serves, `{id} IN (...)`, and its values; of one id or more."""
    # Literals without a type, which PostgreSQL reads as the column's, whatever that is.
    values = {f"id_{number}": as_constant(value) for number, value in enumerate(ids)}
    return f"{{id}} IN ({', '.join(f':{name}' for name in values)})", values


def vectors_of(connection: Connection, target: TargetTable, columns: Sequence[str], ids: Sequence[Any]) -> SampledRows:
    """Those of the rows with these ids that have a vector in every one of `columns`, in no order.

    Of a column without dimensions as `sample_vectors` does.
    """
    if not ids:
        return SampledRows([], [], {column: np.empty((0, 0), np.float32) for column in columns})
    is_among, values = among(ids)
    return _with_vectors(connection, target, columns, f"FROM {{table}} WHERE {is_among} AND {{present}}", values)


def _with_vectors(
    connection: Connection, target: TargetTable, columns: Sequence[str], rest: str, values: dict[str, Any]
) -> SampledRows:
    names = {f"column_{number}": column for number, column in enumerate(columns)}
    vectors = ", ".join(f"CAST({{{name}}}::vector AS real[])" for name in names)
    present = " AND ".join([*(f"{{{name}}} IS NOT NULL" for name in names), HAS_TEXT])
    for name in untyped_columns(connection, target, columns):
        most = next(iter(dimensions_in(connection, target, name)), 0)
        present += f" AND vector_dims({{column_{columns.index(name)}}}::vector) = {most}"
    statement = target.sql(f"SELECT {{text}}, {vectors}, {{ids}} {rest.replace('{present}', present)}", **names)
    found = connection.execute(statement, values).all()
    arrays = {
        column: np.array([row[1 + number] for row in found], np.float32) if found else np.empty((0, 0), np.float32)
        for number, column in enumerate(columns)
    }
    ids = [from_driver(row[1 + len(columns) :]) for row in found]
    return SampledRows(ids, [row[0] for row in found], arrays)


def untyped_columns(connection: Connection, target: TargetTable, columns: Sequence[str]) -> list[str]:
    """Those of the columns whose type says nothing of dimensions, so that rows may differ in them."""
    values = {"table": str(target), "columns": list(columns)}
    return list(connection.execute(text(_UNTYPED), values).scalars())


def dimensions_in(connection: Connection, target: TargetTable, column: str) -> dict[int, int]:
    """Sampled rows by the dimensions of their vectors, the most frequent first; of a vector or halfvec column."""
    source, values = _source(connection, target, _DIMENSIONS_SAMPLE_ROWS, None, 0)
    statement = target.sql(
        f"SELECT vector_dims({{column}}) AS dimensions, count(*) AS rows "
        f"FROM (SELECT {{column}} {source} AND {{column}} IS NOT NULL LIMIT :rows) sampled GROUP BY 1 ORDER BY 2 DESC, 1",
        column=column,
    )
    return {row.dimensions: row.rows for row in connection.execute(statement, values)}


def sample_lengths(
    connection: Connection, target: TargetTable, column: str, rows: int, *, id_range: IdRange | None = None
) -> NDArray[np.float64]:
    """Lengths of about `rows` vectors, measured by the server: (n,)."""
    source, values = _source(connection, target, rows, id_range, 0)
    statement = target.sql(
        f"SELECT vector_norm({{column}}::vector) {source} AND {{column}} IS NOT NULL LIMIT :rows", column=column
    )
    return np.array(connection.execute(statement, values).scalars().all(), np.float64)


def _source(
    connection: Connection, target: TargetTable, rows: int, id_range: IdRange | None, seed: int
) -> tuple[str, dict[str, Any]]:
    """FROM and the beginning of WHERE: the rows of the id range, or those on random pages that hold `rows` rows or more."""
    if id_range is not None:
        return f"FROM {{table}} WHERE {id_range.condition}", {"rows": rows, **id_range.values}
    percent = sample_percent(connection, target, rows)
    values = {"percent": percent, "seed": seed, "rows": rows}
    return f"FROM {{table}} {sampled(connection, target, percent)} WHERE {{in_part}}", values
