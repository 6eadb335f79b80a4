"""The SQL of a search. Each function returns one statement, whose first column is the searched column's signature.

Every statement returns at least one row, so that the signature comes back even where nothing was found; the columns
after it are NULL then. Order: signature, the columns of the id, text, score, distance, dense rank, lexical score, lexical
rank, and the columns asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Label,
    Select,
    String,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
)

from bge_pipeline.database.indexes import OPERATORS
from bge_pipeline.search.column import SearchedColumn, signature_statement
from bge_pipeline.search.expressions import column_of, materialized, on_target, text_config, text_of
from bge_pipeline.search.query import ParsedQuery
from bge_pipeline.search.words import lexical_list

DENSE_K = 3
WORDS_WEIGHT = 0.06
"""The fused score is 1 / (DENSE_K + rank by vectors) + WORDS_WEIGHT * standing by words (`lexical_list`).

The first term is that of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), with a constant so small that
the nearest rows are hard to displace: the row that leads by words weighs less than the thirteenth nearest. The second goes
by scores, not ranks, since a list of words has a first rank where nothing in it answers, too (Bruch, Gai and Ingber, "An
Analysis of Fusion Functions for Hybrid Retrieval", ACM TOIS 42(1), 2023). docs/search.md has the evidence for both values.
"""


def dense_statement(
    searched: SearchedColumn,
    vector: NDArray[np.float32],
    limit: int,
    *,
    where: ColumnElement[bool] | None = None,
    columns: Sequence[str] = (),
) -> Select[Any]:
    """The `limit` rows nearest to `vector`, float32 (dimensions,)."""
    dense = _dense(searched, vector, limit, where)
    score = 1 - dense.c.distance if searched.metric == "cosine" else -dense.c.distance
    found = select(
        *searched.identity.of(dense),
        score.label("score"),
        dense.c.distance,
        dense.c.rank.label("dense_rank"),
        cast(null(), Double).label("lexical_score"),
        cast(null(), Integer).label("lexical_rank"),
    )
    return _with_rows(searched, found.cte("found"), columns)


def lexical_statement(
    searched: SearchedColumn,
    query: ParsedQuery,
    limit: int,
    *,
    where: ColumnElement[bool] | None = None,
    columns: Sequence[str] = (),
) -> Select[Any]:
    """The `limit` rows that share the most telling words with the query."""
    lexical = lexical_list(searched, query, limit, where)
    found = select(
        *searched.identity.of(lexical),
        lexical.c.score,
        cast(null(), Double).label("distance"),
        cast(null(), Integer).label("dense_rank"),
        lexical.c.score.label("lexical_score"),
        lexical.c.rank.label("lexical_rank"),
    )
    return _with_rows(searched, found.cte("found"), columns)


def hybrid_statement(
    searched: SearchedColumn,
    vector: NDArray[np.float32],
    query: ParsedQuery,
    depth: int,
    limit: int,
    *,
    where: ColumnElement[bool] | None = None,
    columns: Sequence[str] = (),
) -> Select[Any]:
    """The `limit` best of the `depth` nearest rows and the `depth` best by words, fused."""
    dense = _dense(searched, vector, depth, where, must=query.must)
    lexical = lexical_list(searched, query, depth, where)
    by_rank = func.coalesce(literal(1.0, Double) / (DENSE_K + dense.c.rank), 0.0)
    score = by_rank + func.coalesce(WORDS_WEIGHT * lexical.c.standing, 0.0)
    fused = (
        select(
            *(func.coalesce(dense.c[name], lexical.c[name]).label(name) for name in searched.identity.names),
            score.label("score"),
            dense.c.distance,
            dense.c.rank.label("dense_rank"),
            lexical.c.score.label("lexical_score"),
            lexical.c.rank.label("lexical_rank"),
        )
        .select_from(dense.join(lexical, searched.identity.same(dense, lexical), full=True))
        .order_by(literal_column("score").desc(), *map(literal_column, searched.identity.names))
        .limit(limit)
    )
    return _with_rows(searched, fused.cte("found"), columns)


def nearest_vectors_statement(searched: SearchedColumn, vector: NDArray[np.float32], limit: int) -> Select[Any]:
    """Signature and stored vector of the `limit` rows nearest to `vector`, nearest first."""
    dense = _dense(searched, vector, limit, None)
    row = searched.table.alias("row")
    found = (
        select(dense.c.rank, cast(row.c[searched.column.name], VECTOR).label("vector"))
        .select_from(dense.join(row, searched.identity.is_row(row, dense)))
        .cte("found")
    )
    guard = _guard(searched)
    return select(guard.c.signature, found.c.vector).select_from(guard.outerjoin(found, true())).order_by(found.c.rank)


def _dense(
    searched: SearchedColumn,
    vector: NDArray[np.float32],
    limit: int,
    where: ColumnElement[bool] | None,
    *,
    must: str = "",
) -> CTE:
    """(id, distance, rank) of the nearest rows. MATERIALIZED and `+ 0`, since a relaxed iterative scan is not in order."""
    vector_type = (HALFVEC if searched.element == "halfvec" else VECTOR)(len(vector))
    stored: ColumnElement[Any] = literal_column(f"({searched.expression_for(len(vector))})")
    compare: Any = stored.op(OPERATORS[searched.metric], return_type=Double())
    distance: Label[float] = compare(cast(vector, vector_type)).label("distance")
    identity = searched.identity
    present: ColumnElement[bool] = stored.is_not(None)
    if searched.column.dimensions is None:  # rows of other dimensions cannot be compared, nor cast
        dimensions = func.vector_dims(searched.table.c[searched.column.name])
        present = dimensions == literal_column(str(len(vector)))
    nearest = select(*identity.labels(searched.table), distance).where(present).order_by(distance).limit(limit)
    if searched.target.condition is not None:
        nearest = nearest.where(literal_column(searched.target.row_text.in_part, Boolean))
    if where is not None:
        nearest = nearest.where(on_target(searched, where))
    candidates = materialized(nearest, "nearest")
    rank = func.row_number().over(order_by=(candidates.c.distance + literal_column("0"), *identity.of(candidates)))
    # The cosine distance to a vector of zeros is NaN, which as a score would be above every other.
    ranked = select(*identity.of(candidates), candidates.c.distance, rank.label("rank")).where(
        candidates.c.distance != literal_column("CAST('NaN' AS double precision)")
    )
    if must:
        phrases = func.websearch_to_tsquery(text_config(searched), must)
        row = searched.table.alias("row")
        words = func.to_tsvector(text_config(searched), text_of(searched, row))
        ranked = ranked.join(row, identity.is_row(row, candidates)).where(
            or_(func.numnode(phrases) == 0, words.op("@@")(phrases))  # of stop words alone nothing is left to insist on
        )
    return ranked.cte("dense")


def _with_rows(searched: SearchedColumn, found: CTE, columns: Sequence[str]) -> Select[Any]:
    """Join text and wanted columns to what was found; the signature stands in every row, and there is always one."""
    guard = _guard(searched)
    row = searched.table.alias("row")
    wanted = [column_of(searched, name) for name in columns]
    return (
        select(
            guard.c.signature,
            *searched.identity.of(found),
            cast(text_of(searched, row), String),
            found.c.score,
            found.c.distance,
            found.c.dense_rank,
            found.c.lexical_score,
            found.c.lexical_rank,
            *(row.c[column.name].label(f"column_{position}") for position, column in enumerate(wanted)),
        )
        .select_from(guard.outerjoin(found, true()).outerjoin(row, searched.identity.is_row(row, found)))
        .order_by(found.c.score.desc().nulls_last(), *searched.identity.of(found))
    )


def _guard(searched: SearchedColumn) -> CTE:
    signature = signature_statement(searched.target, searched.column.name, is_partitioned=searched.is_partitioned)
    current = signature.columns(column("signature", String))
    return select(current.scalar_subquery().label("signature")).cte("guard")
