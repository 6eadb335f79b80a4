"""How searches of the old and of the new column perform: milliseconds, recall of the index, nDCG on judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sampling import SampledRows, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.loading import load_encoder_of
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.index_recall import index_recall
from bge_pipeline.quality.judgements import JudgedQueries, load_judged_queries
from bge_pipeline.quality.known_items import excerpts
from bge_pipeline.quality.measure import NEIGHBOURS
from bge_pipeline.quality.recall_queries import RecallQueries
from bge_pipeline.quality.search_quality import ask_each, measure_search, p50_and_p95
from bge_pipeline.quality.stored_vectors import StoredVectors
from bge_pipeline.search import RerankMode, Retriever, SearchMode
from bge_pipeline.search.column import read_column
from bge_pipeline.settings import Settings
from bge_pipeline.space import EmbeddingSpace

_QUERIES = 50
_SECONDS = 15.0
"""For one way of searching: where each search takes long (no index, a cross-encoder), as many queries are timed as fit."""


@dataclass(frozen=True)
class SearchRun:
    """One way of searching, timed query by query.

    Attributes:
        column: whether the old or the new vectors were searched.
        mode: how candidates were found.
        reranked: whether a cross-encoder put them in order.
        queries: how many were timed.
        p50_milliseconds, p95_milliseconds: from the query to its results, encoding included where `encodes` is true.
        encodes: whether the query's vector was made within the time.
        recall: share of the exact 20 nearest that came back; None where nothing exact is compared.
        ndcg: nDCG@20 on labelled queries; None without them.
        index: name and method of the vector index on the column; None where every row was compared.
    """

    column: Literal["old", "new"]
    mode: SearchMode
    reranked: bool
    queries: int
    p50_milliseconds: float
    p95_milliseconds: float
    encodes: bool
    recall: float | None = None
    ndcg: float | None = None
    index: str | None = None

    def is_like(self, other: SearchRun) -> bool:
        """Whether the milliseconds of both are of one kind: by an index or without, the query encoded or beforehand."""
        return self.encodes == other.encodes and (self.index is None) == (other.index is None)

    @property
    def words(self) -> tuple[str, ...]:
        """Which column was searched and by which means, word by word."""
        return (self.column, self.mode, "reranked") if self.reranked else (self.column, self.mode)

    @property
    def name(self) -> str:
        """The same for people: `new hybrid, reranked`."""
        return f"{self.column} {self.mode}" + ", reranked" * self.reranked


@dataclass(frozen=True)
class SearchedColumns:
    """The columns that are timed.

    Attributes:
        target: their table.
        old, new: names of the two; None where there is none.
        old_space: the old column's embedding space, None where nobody recorded it.
        new_recall: what was found of the new column's index, None where nobody looked.
    """

    target: TargetTable
    old: str | None
    new: str | None
    old_space: EmbeddingSpace | None
    new_recall: float | None


def search_runs(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    columns: SearchedColumns,
    notes: list[str],
) -> tuple[SearchRun, ...]:
    """Time each way of searching: with EVAL_QUERIES on all of its queries, else on excerpts of 50 rows.

    Args:
        migration: of the table.
        service: the new model, and the reranker where ENABLE_RERANKER asks for one.
        columns: those to search.
        notes: what could not be measured, and why, is added here.
    """
    new, old = columns.new, columns.old
    names = [column for column in (old, new) if column is not None]
    with database.autocommit() as connection:
        rows = sample_vectors(connection, columns.target, names, _QUERIES)
        if not len(rows):
            notes.append("search was not measured: the table has no vectors")
            return ()
        old_recall = None
        if old is not None:
            searched = read_column(connection, settings, old)
            old_recall = index_recall(connection, settings, searched, RecallQueries(rows.vectors[old], NEIGHBOURS))
    judged = load_judged_queries(settings.eval_queries) if settings.eval_queries is not None else None
    runs = []
    if old is not None:
        found = _search_old(database, settings, columns.old_space, rows, old, judged, notes)
        runs.append(replace(found, recall=old_recall))
    if new is not None:
        retriever = Retriever(database, settings, service, column=new)
        queries = judged or excerpts(rows.texts)
        runs.append(replace(_timed(retriever, "new", queries, notes), recall=columns.new_recall))
        runs.append(_timed(retriever, "new", queries, notes, mode="hybrid"))
        if settings.enable_reranker and service.reranker is not None:
            runs.append(_timed(retriever, "new", queries, notes, mode="hybrid", rerank="always"))
    return tuple(runs)


def _search_old(
    database: Database,
    settings: Settings,
    space: EmbeddingSpace | None,
    rows: SampledRows,
    column: str,
    judged: JudgedQueries | None,
    notes: list[str],
) -> SearchRun:
    encoder = load_encoder_of(space, settings) if space is not None else None
    if encoder is not None:
        retriever = Retriever(database, settings, query_encoder=encoder, column=column)
        return _timed(retriever, "old", judged or excerpts(rows.texts), notes)
    notes.append(
        "the old model is not at hand: the old column was searched with vectors stored in it, without encoding"
    )
    as_stored = settings.model_copy(update={"query_expansion": "off"})  # of an invented passage there is no vector
    retriever = Retriever(database, as_stored, query_encoder=StoredVectors(rows, column, space), column=column)
    return replace(_timed(retriever, "old", rows.texts, notes), encodes=False)


def _timed(
    retriever: Retriever,
    column: Literal["old", "new"],
    queries: JudgedQueries | Sequence[str],
    notes: list[str],
    *,
    mode: SearchMode = "dense",
    rerank: RerankMode = "never",
) -> SearchRun:
    ndcg, found_index = None, retriever.check().index
    index = f"{found_index.name} ({found_index.method})" if found_index is not None else None
    if isinstance(queries, JudgedQueries):
        found = measure_search(retriever, queries, mode=mode, rerank=rerank, k=NEIGHBOURS, seconds=_SECONDS)
        p50, p95, asked, ndcg = found.p50_ms, found.p95_ms, len(found.quality.ndcg_by_query), found.quality.ndcg
    else:
        answers = list(ask_each(retriever, queries, mode=mode, rerank=rerank, k=NEIGHBOURS, seconds=_SECONDS))
        (p50, p95), asked = p50_and_p95(answers), len(answers)
    run = SearchRun(column, mode, rerank != "never", asked, p50, p95, encodes=True, ndcg=ndcg, index=index)
    if asked < len(queries):
        notes.append(
            f"{run.name}: {asked} of {len(queries)} queries were searched, as many as {_SECONDS:.0f} s are enough for"
        )
    return run
