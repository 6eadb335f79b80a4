"""How fast the models run on this machine: encoding at one batch size, and reranking. Knows no database."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bge_pipeline.embedding.reranker import Reranker
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.known_items import excerpts

QUERIES = 50
PASSAGES = 200


@dataclass(frozen=True)
class EncodeRun:
    """Encoding the sample with one batch size; `device_memory_bytes` is None where the device does not tell."""

    batch_size: int
    texts: int
    tokens: int
    seconds: float
    device_memory_bytes: int | None

    @property
    def texts_per_second(self) -> float:
        """Texts per second of wall time."""
        return self.texts / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens, padding not counted, per second of wall time."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class RerankRun:
    """Reranking `documents` candidates for each of `queries` queries."""

    model: str
    queries: int
    documents: int
    seconds: float

    @property
    def pairs_per_second(self) -> float:
        """Pairs of query and document per second of wall time."""
        return self.queries * self.documents / self.seconds

    @property
    def milliseconds_per_query(self) -> float:
        """Time that reranking adds to one search."""
        return 1_000 * self.seconds / self.queries


def measure_encoding(
    service: EmbeddingsService, texts: Sequence[str], batch_size: int, *, rounds: int = 1
) -> EncodeRun:
    """Encode the texts, after one batch that is not counted; the time is the median of the rounds.

    Raises:
        EncodingError: the model failed on these texts.
    """
    service.forget_device_memory()
    tokens = int(service.encoder.tokenize(texts).token_counts.sum())
    service.encode_texts(texts[:batch_size], batch_size=batch_size)
    seconds = _median_seconds(lambda: service.encode_texts(texts, batch_size=batch_size), rounds)
    return EncodeRun(batch_size, len(texts), tokens, seconds, service.device_memory_bytes())


def measure_reranking(
    reranker: Reranker, texts: Sequence[str], *, queries: int = QUERIES, passages: int = PASSAGES, rounds: int = 1
) -> RerankRun:
    """Score the first `passages` texts for excerpts of the first `queries`; the time is the median of the rounds.

    One query is not counted. It settles, too, which model there is memory for.

    Raises:
        EncodingError: the reranker failed.
    """
    documents = texts[:passages]
    asked = excerpts(texts[:queries])
    reranker.score(asked[0], documents)
    seconds = _median_seconds(lambda: [reranker.score(query, documents) for query in asked], rounds)
    return RerankRun(reranker.model, len(asked), len(documents), seconds)


def _median_seconds(work: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
