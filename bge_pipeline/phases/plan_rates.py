"""What a plan measures and reckons: lengths in tokens, texts a second, the time of the backfill, bytes on disk."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from bge_pipeline.database.indexes import IndexPlan
from bge_pipeline.database.partitions import heap_bytes
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.embedding.encoder import TextsRefused, TokenizedTexts
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.unloaded_model import UnloadedModel
from bge_pipeline.phases.writing_rates import WritingRates

logger = logging.getLogger(__name__)


TOKEN_SAMPLE_ROWS = 2_000


SPEED_SAMPLE_ROWS = 256
"""Texts on which the speed of a model is measured."""


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of a sample of the table's texts, in tokens of the new model, before truncation to `limit`."""

    sampled_rows: int
    mean: float
    median: int
    p95: int
    longest: int
    limit: int
    share_truncated: float


def run_by(service: EmbeddingsService | UnloadedModel) -> str | None:
    """What runs the model and how that was proved; None of one that is not loaded."""
    road = service.road if isinstance(service, EmbeddingsService) else None
    return str(road) if road is not None else None


def token_lengths(limit: int, tokens: TokenizedTexts | None) -> TokenLengths:
    """Statistics of a sample; of nothing where none was counted."""
    if not tokens:
        return TokenLengths(0, 0.0, 0, 0, 0, limit, 0.0)
    lengths = tokens.token_counts
    return TokenLengths(
        sampled_rows=len(tokens),
        mean=float(lengths.mean()),
        median=int(np.median(lengths)),
        p95=int(np.percentile(lengths, 95)),
        longest=int(lengths.max()),
        limit=limit,
        share_truncated=float(tokens.truncated.mean()),
    )


def texts_per_second(service: EmbeddingsService | UnloadedModel, texts: list[str]) -> float:
    """Texts a second on a sample of the table, after a first call that pays for the start."""
    if isinstance(service, UnloadedModel):
        return service.texts_per_second
    sample = texts[:SPEED_SAMPLE_ROWS]
    if not sample:
        return 0.0
    _encode(service, sample[:8])
    started = time.perf_counter()
    _encode(service, sample)
    return len(sample) / (time.perf_counter() - started)


def _encode(service: EmbeddingsService, texts: list[str]) -> None:
    """Encode for the time it takes; a text at fault, which the backfill will put aside, is no obstacle to a plan."""
    try:
        service.encode_texts(texts)
    except TextsRefused as refusal:
        logger.warning("%s", refusal.message)


def disk_bytes(connection: Connection, target: TargetTable, pending: int, index: IndexPlan, vector: VectorType) -> int:
    """New row versions (values out of line stay where they are), new vectors, and the new index with its lists."""
    heap = heap_bytes(connection, target)
    element = 2 if index.element == "halfvec" else 4
    return int(heap + pending * (vector.bytes + 8) * 1.05 + pending * (element * index.dimensions + 32) * 1.1)


def backfill_seconds(pending: int, speed: float, writing: WritingRates | None, *, keeps_index: bool) -> float:
    """At the rate of the slower, model or writing; 0 where neither is known."""
    rates = [speed] if speed else []
    if writing is not None:
        rates.append(writing.kept if keeps_index else writing.dropped)
    return pending / min(rates) if rates else 0.0
