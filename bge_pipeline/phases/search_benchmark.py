"""How searches of the old and of the new column perform: milliseconds, recall of the index, nDCG on judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.database.connection import Database
from bge_pipeline.database.vectors import SampledRows, sample_vectors
from bge_pipeline.embedding.loading import load_encoder_of
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.evaluation.judgements import JudgedQueries, load_judged_queries
from bge_pipeline.evaluation.label_free import excerpts
from bge_pipeline.evaluation.report import SearchRun
from bge_pipeline.phases.quality import quality_columns
from bge_pipeline.phases.state import MigrationState, space_of
from bge_pipeline.search import RerankMode, Retriever, SearchMode
from bge_pipeline.search.ann import index_recall
from bge_pipeline.search.comparison import ask_each, measure_search, p50_and_p95
from bge_pipeline.settings import Settings

_QUERIES = 50
_NEIGHBOURS = 20


class _StoredVectors:
    """Stands in for an encoder that is not at hand: the vector of a known text is the one stored with its row."""

    def __init__(self, rows: SampledRows, column: str) -> None:
        self._vectors = dict(zip(rows.texts, rows.vectors[column], strict=True))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts of the sample."""
        return np.stack([self._vectors[text] for text in texts])


def search_runs(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    state: MigrationState,
    new_recall: float | None,
    notes: list[str],
) -> tuple[SearchRun, ...]:
    """Time each way of searching: with EVAL_QUERIES on all of its queries, else on excerpts of 50 rows.

    Args:
        database: where the target table is.
        settings: they name it.
        service: the new model, and the reranker where ENABLE_RERANKER asks for one.
        state: of the migration.
        new_recall: what the quality gate found of the new index, None where it did not look.
        notes: what could not be measured, and why, is added here.
    """
    target = state.table.target
    new, old = (None, target.embedding_column) if state.phase == "legacy" else quality_columns(state)
    columns = [column for column in (old, new) if column is not None]
    with database.autocommit() as connection:
        rows = sample_vectors(connection, target, columns, _QUERIES)
        if not len(rows):
            notes.append("search was not measured: the table has no vectors")
            return ()
        old_recall = (
            index_recall(connection, settings, old, rows.vectors[old], _NEIGHBOURS) if old is not None else None
        )
    judged = load_judged_queries(settings.eval_queries) if settings.eval_queries is not None else None
    runs = []
    if old is not None:
        runs.append(replace(_search_old(database, settings, state, rows, old, judged, notes), recall=old_recall))
    if new is not None:
        retriever = Retriever(database, settings, service, column=new)
        queries = judged or excerpts(rows.texts)
        runs.append(replace(_timed(retriever, "new dense", queries), recall=new_recall))
        runs.append(_timed(retriever, "new hybrid", queries, mode="hybrid"))
        if settings.enable_reranker and service.reranker is not None:
            runs.append(_timed(retriever, "new hybrid, reranked", queries, mode="hybrid", rerank="always"))
    return tuple(runs)


def _search_old(
    database: Database,
    settings: Settings,
    state: MigrationState,
    rows: SampledRows,
    column: str,
    judged: JudgedQueries | None,
    notes: list[str],
) -> SearchRun:
    space = space_of(state.table.columns[column])
    encoder = load_encoder_of(space, settings) if space is not None else None
    if encoder is not None:
        retriever = Retriever(database, settings, query_encoder=encoder, column=column)
        return _timed(retriever, "old dense", judged or excerpts(rows.texts))
    notes.append(
        "the old model is not at hand: the old column was searched with vectors stored in it, without encoding"
    )
    retriever = Retriever(database, settings, query_encoder=_StoredVectors(rows, column), column=column)
    return replace(_timed(retriever, "old dense", rows.texts), encodes=False)


def _timed(
    retriever: Retriever,
    name: str,
    queries: JudgedQueries | Sequence[str],
    *,
    mode: SearchMode = "dense",
    rerank: RerankMode = "never",
) -> SearchRun:
    if isinstance(queries, JudgedQueries):
        found = measure_search(retriever, queries, mode=mode, rerank=rerank, k=_NEIGHBOURS)
        return SearchRun(name, len(queries), found.p50_ms, found.p95_ms, encodes=True, ndcg=found.quality.ndcg)
    p50, p95 = p50_and_p95(list(ask_each(retriever, queries, mode=mode, rerank=rerank, k=_NEIGHBOURS)))
    return SearchRun(name, len(queries), p50, p95, encodes=True)
