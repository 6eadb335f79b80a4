"""The SQL of a search. Each function returns one statement, whose first column is the searched column's signature.

Every statement returns at least one row, so that the signature comes back even where nothing was found; the columns
after it are NULL then. Order: signature, id, text, score, distance, dense rank, lexical score, lexical rank, and the
columns asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    Double,
    Integer,
    Label,
    Select,
    String,
    Text,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY
from sqlalchemy.sql import visitors

from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.search.column import SearchedColumn, signature_statement
from bge_pipeline.search.query import ParsedQuery

RRF_K = 10
LEXICAL_WEIGHT = 0.5
"""Reciprocal rank fusion: 1 / (k + rank) summed over the lists (Cormack, Clarke and Büttcher, SIGIR 2009), the lexical
list at half weight. Their k = 60 is for long lists of equals; here a passage that only the words find should be
able to enter the first twenty: with k = 10 and one half, the best of them weighs as much as the nearest but eleven.
docs/search.md has the figures for other values."""

BM25_K1 = 0.9
BM25_B = 0.2
"""BM25 with every term frequency taken as 1, so that an index answers without reading a text (Robertson and Zaragoza,
"The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation 3.15). Lengths are bytes, against the
average of the passages found."""

COMMON_WORD_ROWS = 20_000
LOOKED_UP_ROWS = 200_000
"""A word in so many rows says little and costs much: it is left out unless every word is like that. A query of
more than ten words shares the second number among them."""

_OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>", "l1": "<+>"}
_MATERIALIZED = "MATERIALIZED"


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
        dense.c.id,
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
    lexical = _lexical(searched, query, limit, where)
    found = select(
        lexical.c.id,
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
    """The `limit` best of the `depth` nearest rows and the `depth` best by words, fused by reciprocal rank."""
    dense = _dense(searched, vector, depth, where, must=query.must)
    lexical = _lexical(searched, query, depth, where)
    score = _reciprocal_rank(dense, 1.0) + _reciprocal_rank(lexical, LEXICAL_WEIGHT)
    fused = (
        select(
            func.coalesce(dense.c.id, lexical.c.id).label("id"),
            score.label("score"),
            dense.c.distance,
            dense.c.rank.label("dense_rank"),
            lexical.c.score.label("lexical_score"),
            lexical.c.rank.label("lexical_rank"),
        )
        .select_from(dense.join(lexical, dense.c.id == lexical.c.id, full=True))
        .order_by(literal_column("score").desc(), literal_column("id"))
        .limit(limit)
    )
    return _with_rows(searched, fused.cte("found"), columns)


def nearest_vectors_statement(searched: SearchedColumn, vector: NDArray[np.float32], limit: int) -> Select[Any]:
    """Signature and stored vector of the `limit` rows nearest to `vector`, nearest first."""
    dense = _dense(searched, vector, limit, None)
    row = searched.table.alias("row")
    found = (
        select(dense.c.rank, cast(row.c[searched.column.name], VECTOR).label("vector"))
        .select_from(dense.join(row, row.c[searched.target.id_column] == dense.c.id))
        .cte("found")
    )
    guard = _guard(searched)
    return select(guard.c.signature, found.c.vector).select_from(guard.outerjoin(found, true())).order_by(found.c.rank)


def on_target(searched: SearchedColumn, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition with its columns of the target table, from whichever Table or mapped class, bound to ours."""
    target = searched.target

    def ours(element: Any, **_: Any) -> Any:
        if isinstance(element, Column) and element.table is not None and _is_target(target, element.table):
            return _column(searched, element.name)
        return None

    return visitors.replacement_traverse(condition, {}, ours)


def document(searched: SearchedColumn) -> ColumnElement[Any]:
    """The row's text as a tsvector, word for word the expression that `create_text_index` indexes."""
    return func.to_tsvector(_config(searched), searched.table.c[searched.target.text_column])


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
    stored: ColumnElement[Any] = literal_column(f"({searched.expression})")
    compare: Any = stored.op(_OPERATORS[searched.metric], return_type=Double())
    distance: Label[float] = compare(cast(vector, vector_type)).label("distance")
    identifier = searched.table.c[searched.target.id_column].label("id")
    nearest = select(identifier, distance).where(stored.is_not(None)).order_by(distance).limit(limit)
    if where is not None:
        nearest = nearest.where(on_target(searched, where))
    candidates = _materialized(nearest, "nearest")
    rank = func.row_number().over(order_by=(candidates.c.distance + literal_column("0"), candidates.c.id))
    ranked = select(candidates.c.id, candidates.c.distance, rank.label("rank"))
    if must:
        phrases = func.websearch_to_tsquery(_config(searched), must)
        row = searched.table
        ranked = ranked.join(row, row.c[searched.target.id_column] == candidates.c.id).where(
            document(searched).op("@@")(phrases)
        )
    return ranked.cte("dense")


def _lexical(searched: SearchedColumn, query: ParsedQuery, limit: int, where: ColumnElement[bool] | None) -> CTE:
    """(id, score, rank) of the rows with the most telling words."""
    terms = _terms(searched, query)
    common = min(COMMON_WORD_ROWS, LOOKED_UP_ROWS // len(query.words.split()))
    find_hits = _indexed_hits if searched.has_text_index else _scanned_hits
    hits = find_hits(searched, terms, where, common)
    counts = _materialized(
        select(hits.c.lexeme, cast(func.count(), Double).label("rows")).group_by(hits.c.lexeme), "counts"
    )
    total = func.greatest(cast(searched.estimated_rows, Double), select(func.max(counts.c.rows)).scalar_subquery())
    idf = func.ln(1 + (total - counts.c.rows + 0.5) / (counts.c.rows + 0.5))
    rare = counts.c.rows < common
    has_rare = select(counts.c.lexeme).where(rare).exists()
    weights = select(counts.c.lexeme, idf.label("idf")).where(rare | ~has_rare).cte("weights")
    average = select(func.avg(hits.c.bytes)).scalar_subquery()
    length = 1 - BM25_B + BM25_B * func.max(hits.c.bytes) / average
    score = (func.sum(weights.c.idf) * (BM25_K1 + 1) / (1 + BM25_K1 * length)).label("score")
    best = (
        select(hits.c.id, score)
        .select_from(hits.join(weights, weights.c.lexeme == hits.c.lexeme))
        .group_by(hits.c.id)
        .order_by(score.desc(), hits.c.id)
        .limit(limit)
    ).cte("best")
    rank = func.row_number().over(order_by=(best.c.score.desc(), best.c.id)).label("rank")
    return select(best.c.id, best.c.score, rank).cte("lexical")


def _terms(searched: SearchedColumn, query: ParsedQuery) -> CTE:
    """(lexeme, query) of each word of the query that is no stop word; its tsquery includes phrases and negations."""
    lexemes = func.tsvector_to_array(func.to_tsvector(_config(searched), query.words))
    lexeme = func.unnest(lexemes, type_=Text()).column_valued("lexeme")
    escaped = func.replace(func.replace(lexeme, "\\", "\\\\"), "'", "''")
    wanted: ColumnElement[Any] = cast(func.concat("'", escaped, "'"), TSQUERY)
    if query.must:
        wanted = wanted.op("&&")(func.websearch_to_tsquery(_config(searched), query.must))
    return _materialized(select(lexeme, wanted.label("query")), "terms")


def _indexed_hits(searched: SearchedColumn, terms: CTE, where: ColumnElement[bool] | None, limit: int) -> CTE:
    """(lexeme, id, bytes), one index lookup for each term, of `limit` rows at most."""
    found = _row_facts(searched, where).where(document(searched).op("@@")(terms.c.query)).limit(limit)
    row = found.lateral("found")
    return _materialized(select(terms.c.lexeme, row.c.id, row.c.bytes).select_from(terms.join(row, true())), "hits")


def _scanned_hits(searched: SearchedColumn, terms: CTE, where: ColumnElement[bool] | None, _limit: int) -> CTE:
    """(lexeme, id, bytes), by taking every text apart once."""
    documents = _materialized(_row_facts(searched, where).add_columns(document(searched).label("words")), "documents")
    matches = documents.c.words.op("@@")(terms.c.query)
    return _materialized(
        select(terms.c.lexeme, documents.c.id, documents.c.bytes).select_from(documents.join(terms, matches)), "hits"
    )


def _row_facts(searched: SearchedColumn, where: ColumnElement[bool] | None) -> Select[Any]:
    table, target = searched.table, searched.target
    length = cast(func.octet_length(cast(table.c[target.text_column], Text)), Double)
    facts = select(table.c[target.id_column].label("id"), length.label("bytes"))
    return facts if where is None else facts.where(on_target(searched, where))


def _with_rows(searched: SearchedColumn, found: CTE, columns: Sequence[str]) -> Select[Any]:
    """Join text and wanted columns to what was found; the signature stands in every row, and there is always one."""
    guard = _guard(searched)
    row = searched.table.alias("row")
    wanted = [_column(searched, name) for name in columns]
    return (
        select(
            guard.c.signature,
            found.c.id,
            cast(row.c[searched.target.text_column], String),
            found.c.score,
            found.c.distance,
            found.c.dense_rank,
            found.c.lexical_score,
            found.c.lexical_rank,
            *(row.c[column.name].label(f"column_{position}") for position, column in enumerate(wanted)),
        )
        .select_from(guard.outerjoin(found, true()).outerjoin(row, row.c[searched.target.id_column] == found.c.id))
        .order_by(found.c.score.desc().nulls_last(), found.c.id)
    )


def _guard(searched: SearchedColumn) -> CTE:
    current = signature_statement(searched.target, searched.column.name).columns(column("signature", String))
    return select(current.scalar_subquery().label("signature")).cte("guard")


def _reciprocal_rank(ranked: CTE, weight: float) -> ColumnElement[float]:
    return func.coalesce(literal(weight, Double) / (RRF_K + ranked.c.rank), 0.0)


def _materialized(statement: Any, name: str) -> CTE:
    materialized: CTE = statement.cte(name).prefix_with(_MATERIALIZED, dialect="postgresql")
    return materialized


def _config(searched: SearchedColumn) -> ColumnElement[Any]:
    return cast(searched.text_config, REGCONFIG)


def _column(searched: SearchedColumn, name: str) -> Column[Any]:
    if name not in searched.table.c:
        raise ConfigurationError(
            f"expected a column of {searched.target}, got {name!r}; its columns are {', '.join(searched.table.c.keys())}"
        )
    return searched.table.c[name]


def _is_target(target: TargetTable, table: Any) -> bool:
    return getattr(table, "name", None) == target.table and getattr(table, "schema", None) in (None, target.schema)
