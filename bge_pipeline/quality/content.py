"""What is in a vector column, counted by the server: lengths, dimensions, rows without a vector, vectors of several texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.pending import HAS_TEXT
from bge_pipeline.database.sampling import sample_percent, sampled
from bge_pipeline.database.target import TargetTable
from bge_pipeline.quality.bounds import UNIT_LENGTH_TOLERANCE

_DIMENSIONS = {"vector": "vector_dims({column})", "halfvec": "vector_dims({column})", "bit": "length({column})"}
LENGTH = {"vector": "vector_norm({column})", "halfvec": "l2_norm({column})", "sparsevec": "l2_norm({column})"}
"""SQL of a vector's length, by its type; bits have none."""
# A digest of the vector as it is sent, which is far cheaper than its text; of bits the text is short.
_BYTES = {type_name: f"{type_name}_send({{column}})" for type_name in ("vector", "halfvec", "sparsevec", "bit")}
_QUERY = """
WITH looked AS MATERIALIZED (
  SELECT {has_text} AS has_text, {{column}} IS NOT NULL AS has_vector, {dimensions} AS dimensions, {length} AS length,
         CASE WHEN {has_text} THEN sha256({bytes}) END AS vector, md5({{text}}::text) AS text
  FROM {{table}} {sample} WHERE {{in_part}}),
by_dimensions AS (SELECT dimensions, count(*) AS rows FROM looked WHERE has_vector GROUP BY dimensions),
shared AS (
  SELECT count(*) AS rows FROM looked WHERE vector IS NOT NULL GROUP BY vector HAVING count(DISTINCT text) > 1)
SELECT count(*) AS rows,
       count(*) FILTER (WHERE has_vector) AS vectors,
       count(*) FILTER (WHERE has_text AND NOT has_vector) AS without_vector,
       count(*) FILTER (WHERE has_vector AND NOT has_text) AS without_text,
       count(*) FILTER (WHERE length = 0) AS zero,
       count(*) FILTER (WHERE length > 0 AND abs(length - 1) > :tolerance) AS not_unit,
       min(length) AS shortest, max(length) AS longest,
       (SELECT coalesce(sum(rows), 0) FROM shared)::bigint AS shared,
       (SELECT json_object_agg(dimensions, rows ORDER BY rows DESC) FROM by_dimensions WHERE dimensions IS NOT NULL)
         AS dimensions
FROM looked
"""


@dataclass(frozen=True)
class ColumnContent:
    """Counts of the rows that were looked at.

    Attributes:
        rows: rows looked at.
        is_sample: whether those are a sample of the table's pages.
        vectors: rows with a vector.
        without_vector: rows with text and no vector.
        without_text: rows with a vector and nothing that it could be made of.
        zero: vectors of length zero, to which nothing has a cosine.
        not_unit: other vectors whose length is not one.
        shortest, longest: lengths; None where the type has none.
        shared: rows whose vector a row of another text has too, among those looked at.
        dimensions: rows by the dimensions of their vector, the most frequent first.
    """

    rows: int
    is_sample: bool
    vectors: int
    without_vector: int
    without_text: int
    zero: int
    not_unit: int
    shortest: float | None
    longest: float | None
    shared: int
    dimensions: dict[int, int]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def read_content(connection: Connection, target: TargetTable, column: Column, most_rows: int | None) -> ColumnContent:
    """Count in one read of the table, or of random pages that hold some `most_rows` rows."""
    values: dict[str, Any] = {"tolerance": UNIT_LENGTH_TOLERANCE, "seed": 0}
    sample = ""
    if most_rows is not None:
        values["percent"] = sample_percent(connection, target, most_rows)
        if values["percent"] < 100:
            sample = sampled(connection, target, values["percent"])
    statement = _QUERY.format(
        has_text=HAS_TEXT,
        dimensions=_DIMENSIONS.get(column.type_name, "NULL::integer"),
        length=LENGTH.get(column.type_name, "NULL::double precision"),
        bytes=_BYTES[column.type_name],
        sample=sample,
    )
    row = connection.execute(target.sql(statement, column=column.name), values).one()
    return ColumnContent(
        rows=row.rows,
        is_sample=bool(sample),
        vectors=row.vectors,
        without_vector=row.without_vector,
        without_text=row.without_text,
        zero=row.zero,
        not_unit=row.not_unit,
        shortest=row.shortest,
        longest=row.longest,
        shared=row.shared,
        dimensions={int(dimensions): rows for dimensions, rows in (row.dimensions or {}).items()},
    )
