"""The labelled half of the gate: nDCG@20 of what the application will see, in the old and in the new column."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.ids import Id, id_as_text
from bge_pipeline.database.sampling import among, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.loading import load_encoder_named, load_encoder_of
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.judgements import load_judged_queries
from bge_pipeline.quality.label_free import stored_vectors_match
from bge_pipeline.quality.metrics import ranking_quality
from bge_pipeline.quality.recall_queries import exact_ranking
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_RANKS = 20
_RERANKED_QUERIES = 50
"""A cross-encoder reads RERANK_TOP_K passages for each query and column: 20,000 pairs at the defaults."""
_DECLARED_SAMPLE_ROWS = 32

OnRows = Callable[[str, int, int], None]
"""Told the column, the rows compared so far, and the planner's estimate of all rows."""


@dataclass(frozen=True)
class LabelledQuality:
    """nDCG@20 over labelled queries.

    Attributes:
        ndcg_old: in the old column; None where its model is not at hand.
        ndcg_new: in the new column.
        queries: how many were asked.
        available: how many the file has; the others were left out by QUALITY_MAX_QUERIES.
        reranked: whether the first RERANK_TOP_K were reranked, as the application's searches are.
    """

    ndcg_old: float | None
    ndcg_new: float
    queries: int
    available: int
    reranked: bool

    def basis(self) -> str:
        """What the figures rest on, in words."""
        of = f" of {self.available:,}" if self.queries < self.available else ""
        return f"{self.queries:,}{of} labelled queries" + (
            ", reranked as the application's are" if self.reranked else ""
        )


def measure_labelled(
    connection: Connection,
    settings: Settings,
    service: EmbeddingsService,
    columns: ComparedColumns,
    *,
    on_rows: OnRows | None = None,
) -> LabelledQuality | None:
    """Search exactly in both columns for the queries of EVAL_QUERIES; None where there are none.

    The old model is the one noted with the old column, or LEGACY_MODEL where it is set and is found to have made the
    vectors that are there.
    """
    if settings.eval_queries is None:
        return None
    judged = load_judged_queries(settings.eval_queries)
    reranked = settings.enable_reranker
    most = min(settings.quality_max_queries, _RERANKED_QUERIES) if reranked else settings.quality_max_queries
    asked = judged.sampled(most)
    texts = list(asked.queries.values())

    def ndcg(column: str, queries: NDArray[np.float32]) -> float:
        def told(rows: int) -> None:
            if on_rows is not None:
                on_rows(column, rows, columns.table.estimated_rows)

        k = settings.rerank_top_k if reranked else _RANKS
        rankings = exact_ranking(connection, settings, column, queries, k=k, on_rows=told)
        if reranked:
            rankings = [
                _reranked(connection, columns.table.target, service, query, ids)
                for query, ids in zip(texts, rankings, strict=True)
            ]
        by_query = {
            query_id: [id_as_text(i) for i in ids] for query_id, ids in zip(asked.queries, rankings, strict=True)
        }
        return ranking_quality(asked.qrels, by_query).ndcg

    ndcg_new = ndcg(columns.new.name, service.encode_queries(texts))
    encoder = old_encoder(connection, settings, columns)
    if columns.old is None or encoder is None:
        logger.info("the old model is not at hand: nDCG@20 of the new vectors is measured alone")
        return LabelledQuality(None, ndcg_new, len(asked), len(judged), reranked)
    ndcg_old = ndcg(columns.old.name, encoder.encode(encoder.tokenize_queries(texts)))
    return LabelledQuality(ndcg_old, ndcg_new, len(asked), len(judged), reranked)


def old_encoder(connection: Connection, settings: Settings, columns: ComparedColumns) -> QueryEncoder | None:
    """The encoder that made the old column's vectors, where it is at hand: noted with the column, or declared."""
    if columns.old is None or columns.old.type_name not in SEARCHABLE_TYPES:
        return None
    if columns.old_space is not None:
        return load_encoder_of(columns.old_space, settings)
    if "legacy_model" not in settings.model_fields_set:
        return None
    return _declared_encoder(connection, settings, columns.table.target, columns.old)


def _declared_encoder(
    connection: Connection, settings: Settings, target: TargetTable, column: Column
) -> QueryEncoder | None:
    """LEGACY_MODEL, if it is here and makes the vectors that the column holds of the same texts."""
    sample = sample_vectors(connection, target, [column.name], _DECLARED_SAMPLE_ROWS)
    if not len(sample):
        return None
    try:
        encoder = load_encoder_named(settings.legacy_model, sample.vectors[column.name].shape[1], settings)
    except (ModelUnavailable, ConfigurationError) as error:
        logger.warning("LEGACY_MODEL=%s cannot be used: %s", settings.legacy_model, error.message)
        return None
    made = encoder.encode(encoder.tokenize(sample.texts))
    found = stored_vectors_match(sample.vectors[column.name], made)
    if found.matching_share < 0.5:
        logger.warning(
            "LEGACY_MODEL=%s did not make the vectors in %r (%s): the new vectors are measured alone",
            settings.legacy_model,
            column.name,
            found.summary(),
        )
        return None
    return encoder


def _reranked(
    connection: Connection, target: TargetTable, service: EmbeddingsService, query: str, ids: list[Id]
) -> list[Id]:
    if not ids:
        return []
    is_among, values = among(ids)
    rows = connection.execute(
        target.sql(f"SELECT {{id_text}} AS id, {{text}} AS text FROM {{table}} WHERE {is_among}"), values
    )
    texts = {row.id: row.text or "" for row in rows}
    there = [i for i in ids if id_as_text(i) in texts]
    order = service.rerank(query, [texts[id_as_text(i)] for i in there], top_k=_RANKS)
    return [there[position] for position in order]
