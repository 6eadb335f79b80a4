"""The SQL of the lexical list: rows by the query's words, with BM25, as CTEs of one statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, ColumnElement, Double, Select, Text, cast, func, select, true
from sqlalchemy.dialects.postgresql import TSQUERY

from bge_pipeline.search.column import SearchedColumn
from bge_pipeline.search.expressions import document, materialized, on_target, text_config, text_of
from bge_pipeline.search.query import ParsedQuery

BM25_K1 = 0.9
BM25_B = 0.2
"""BM25 with every term frequency taken as 1, so that an index answers without reading a text (Robertson and Zaragoza,
"The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation 3.15). Lengths are bytes, against the
average of the passages found."""

COMMON_WORD_ROWS = 20_000
LOOKED_UP_ROWS = 200_000
"""A word in so many rows says little and costs much: it is left out unless every word is like that. A query of
more than ten words shares the second number among them."""

BACKGROUND_RANK = 200
"""A row of this rank by words is one of many that share some word with the query by chance."""


def lexical_list(searched: SearchedColumn, query: ParsedQuery, limit: int, where: ColumnElement[bool] | None) -> CTE:
    """(id, score, rank, standing) of the `limit` rows with the most telling words.

    Standing is by how much a row's score rises above that of BACKGROUND_RANK, as a share of the best score: near 0
    throughout where many rows share the query's common words, and 1 for the best of a few that share its rare ones.
    """
    terms = _terms(searched, query)
    common = min(COMMON_WORD_ROWS, LOOKED_UP_ROWS // len(query.words.split()))
    find_hits = _indexed_hits if searched.has_text_index else _scanned_hits
    identity = searched.identity
    hits = find_hits(searched, terms, where, common)
    counts = materialized(
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
        select(*identity.of(hits), score)
        .select_from(hits.join(weights, weights.c.lexeme == hits.c.lexeme))
        .group_by(*identity.of(hits))
        .order_by(score.desc(), *identity.of(hits))
        .limit(max(limit, BACKGROUND_RANK))
    ).cte("best")
    rank = func.row_number().over(order_by=(best.c.score.desc(), *identity.of(best))).label("rank")
    ranked = select(*identity.of(best), best.c.score, rank).cte("ranked")
    background = select(ranked.c.score).where(ranked.c.rank == BACKGROUND_RANK).scalar_subquery()
    above = func.greatest(ranked.c.score - func.coalesce(background, 0.0), 0.0)
    standing = (above / select(func.max(ranked.c.score)).scalar_subquery()).label("standing")
    found = select(*identity.of(ranked), ranked.c.score, ranked.c.rank, standing).where(ranked.c.rank <= limit)
    return found.cte("lexical")


def _terms(searched: SearchedColumn, query: ParsedQuery) -> CTE:
    """(lexeme, query) of each word of the query that is no stop word; its tsquery includes phrases and negations."""
    lexemes = func.tsvector_to_array(func.to_tsvector(text_config(searched), query.words))
    lexeme = func.unnest(lexemes, type_=Text()).column_valued("lexeme")
    escaped = func.replace(func.replace(lexeme, "\\", "\\\\"), "'", "''")
    wanted: ColumnElement[Any] = cast(func.concat("'", escaped, "'"), TSQUERY)
    if query.must:
        wanted = wanted.op("&&")(func.websearch_to_tsquery(text_config(searched), query.must))
    return materialized(select(lexeme, wanted.label("query")), "terms")


def _indexed_hits(searched: SearchedColumn, terms: CTE, where: ColumnElement[bool] | None, limit: int) -> CTE:
    """(lexeme, id, bytes), one index lookup for each term, of `limit` rows at most."""
    found = _row_facts(searched, where).where(document(searched).op("@@")(terms.c.query)).limit(limit)
    row = found.lateral("found")
    hits = select(terms.c.lexeme, *searched.identity.of(row), row.c.bytes).select_from(terms.join(row, true()))
    return materialized(hits, "hits")


def _scanned_hits(searched: SearchedColumn, terms: CTE, where: ColumnElement[bool] | None, _limit: int) -> CTE:
    """(lexeme, id, bytes), by taking every text apart once."""
    documents = materialized(_row_facts(searched, where).add_columns(document(searched).label("words")), "documents")
    matches = documents.c.words.op("@@")(terms.c.query)
    hits = select(terms.c.lexeme, *searched.identity.of(documents), documents.c.bytes)
    return materialized(hits.select_from(documents.join(terms, matches)), "hits")


def _row_facts(searched: SearchedColumn, where: ColumnElement[bool] | None) -> Select[Any]:
    length = cast(func.octet_length(cast(text_of(searched), Text)), Double)
    facts = select(*searched.identity.labels(searched.table), length.label("bytes"))
    return facts if where is None else facts.where(on_target(searched, where))
