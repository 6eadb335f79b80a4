"""The evidence of the quality gate, measured on a table: its new column against the old one, the model and exact search."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sampling import SampledRows, sample_vectors
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.quality.bounds import MIN_ROWS_PER_NEIGHBOUR, GateBounds
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.gate import QualityMeasurements
from bge_pipeline.quality.known_items import known_item_search, scattered_words
from bge_pipeline.quality.label_free import (
    NeighbourAgreement,
    Vectors,
    neighbour_agreement,
    stored_vectors_match,
)
from bge_pipeline.quality.labelled import OnRows, measure_labelled
from bge_pipeline.quality.poolings import POOLING_WORDS, PoolingComparison, compare_poolings
from bge_pipeline.quality.recall_queries import RecallQueries
from bge_pipeline.quality.server_search import ServerSearch, measure_recalls
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
RECALL_QUERIES = 50
_REEMBEDDED_ROWS = 200
_KNOWN_ITEM_ROWS = 1_000
"""Rows among which known items are searched, whatever the sample: among more, fewer are found."""
_PROGRESS_SECONDS = 5.0


def measure_quality(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    columns: ComparedColumns,
    queries: RecallQueries | None = None,
) -> QualityMeasurements | None:
    """Compare old and new vectors of sampled rows, stored and recomputed ones, and the index with exact search.

    Args:
        database: where the table is.
        settings: the gate's, and those of search.
        service: the new model.
        columns: the two that are compared.
        queries: to ask the new column's index; None: stored vectors out of the sample.

    Returns None on a table without a vector.
    """
    new = columns.new.name
    with database.autocommit() as connection:
        compared, sample = _samples(connection, columns, settings.quality_sample_rows)
        if not len(sample):
            return None
        recall, on_server = _recalls(connection, settings, columns, compared, sample, queries)
        labelled = measure_labelled(connection, settings, service, columns, on_rows=_log_rows())
    texts = sample.texts[:_REEMBEDDED_ROWS]
    recomputed, scattered, poolings = _embedded(service, texts)
    among = sample.vectors[new][:_KNOWN_ITEM_ROWS]
    return QualityMeasurements(
        ndcg_old=labelled.ndcg_old if labelled is not None else None,
        ndcg_new=labelled.ndcg_new if labelled is not None else None,
        ndcg_basis=labelled.basis() if labelled is not None else None,
        ndcg_reranked=labelled.reranked if labelled is not None else None,
        ann_recall=recall,
        server_search=on_server,
        neighbours=_neighbours(compared, columns),
        known_items=known_item_search(scattered, among, range(len(texts)), k=NEIGHBOURS),
        stored_vectors=stored_vectors_match(sample.vectors[new][: len(texts)], recomputed),
        read_whole=1.0 - float(service.encoder.tokenize(sample.texts).truncated.mean()),
        poolings=poolings,
    )


def measure_index(
    database: Database,
    settings: Settings,
    columns: ComparedColumns,
    measured: QualityMeasurements,
    queries: RecallQueries | None = None,
) -> QualityMeasurements:
    """The measurements with the recalls of the new column's index taken anew, by stored vectors as `measure_quality` does."""
    with database.autocommit() as connection:
        compared, sample = _samples(connection, columns, RECALL_QUERIES)
        if not len(sample):
            return replace(measured, ann_recall=None, server_search=None)
        recall, on_server = _recalls(connection, settings, columns, compared, sample, queries)
    return replace(measured, ann_recall=recall, server_search=on_server)


def bounds_of(settings: Settings, measured: QualityMeasurements) -> GateBounds:
    """The bounds that the settings ask for, of what could be measured."""
    took_part = measured.ndcg_reranked
    bounds = GateBounds.for_search(reranked=settings.enable_reranker if took_part is None else took_part)
    return replace(
        bounds,
        ann_recall=settings.quality_min_ann_recall,
        server_recall=settings.quality_min_ann_recall,
        read_whole=settings.quality_min_read_whole,
        ndcg_retained=settings.quality_min_ndcg_retained or bounds.ndcg_retained,
    )


def _samples(connection: Connection, columns: ComparedColumns, rows: int) -> tuple[SampledRows, SampledRows]:
    """Rows with a vector in each of the columns, and rows with one in the new column: the same where most have both."""
    compared = sample_vectors(connection, columns.table.target, columns.names, rows)
    if columns.old is None or len(compared) >= rows // 2:
        return compared, compared
    return compared, sample_vectors(connection, columns.table.target, [columns.new.name], rows)


def _embedded(service: EmbeddingsService, texts: Sequence[str]) -> tuple[Vectors, Vectors, PoolingComparison | None]:
    """Vectors of texts and of words out of them, made as queries are; and of a local transformer how its poolings compare."""
    queries = service.encode_queries(scattered_words(texts))
    encoder = service.encoder
    if not isinstance(encoder, TransformerEncoder):
        return service.encode_texts(texts), queries, None
    rows = encoder.encode_every_way(encoder.tokenize(texts))
    few_words = encoder.encode_every_way(encoder.tokenize_queries(scattered_words(texts, words=POOLING_WORDS)))
    pooling = encoder.space.pooling
    return rows[pooling], queries, compare_poolings(pooling, few_words, rows)


def _recalls(
    connection: Connection,
    settings: Settings,
    columns: ComparedColumns,
    compared: SampledRows,
    sample: SampledRows,
    queries: RecallQueries | None,
) -> tuple[float, ServerSearch | None]:
    new, old = columns.new.name, columns.old
    old_name = old.name if old is not None and old.type_name in SEARCHABLE_TYPES else None
    queries = queries or RecallQueries(sample.vectors[new][:RECALL_QUERIES], NEIGHBOURS)
    if old_name is None or not len(compared):
        return measure_recalls(connection, settings, new, queries)
    old_queries = RecallQueries(compared.vectors[old_name][:RECALL_QUERIES], NEIGHBOURS)
    return measure_recalls(connection, settings, new, queries, old_name, old_queries)


def _neighbours(sample: SampledRows, columns: ComparedColumns) -> NeighbourAgreement | None:
    if columns.old is None or len(sample) < MIN_ROWS_PER_NEIGHBOUR * NEIGHBOURS:
        return None
    return neighbour_agreement(sample.vectors[columns.old.name], sample.vectors[columns.new.name], NEIGHBOURS)


def _log_rows() -> OnRows:
    """Say every few seconds how far the exact search is, which on a large table takes minutes."""
    last = time.monotonic()

    def told(column: str, rows: int, estimated: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            share = f", {min(1.0, rows / estimated):.0%}" if estimated else ""
            logger.info("quality: exact search in %r, %s rows compared%s", column, f"{rows:,}", share)

    return told
