"""The speed of the models is counted in what was really run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.speed import measure_encoding, measure_reranking
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.support import ENCODER

TEXTS = [" ".join(f"word{number}-{place}" for place in range(20)) for number in range(300)]


class Counting:
    """Scores nothing and remembers what it was given."""

    model = "counting"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def score(self, query: str, docs: Sequence[str]) -> np.ndarray:
        self.asked.append((query, len(docs)))
        return np.zeros(len(docs), np.float32)


def test_reranking_is_50_queries_of_200_passages_and_one_before_the_clock_starts() -> None:
    reranker: Any = Counting()

    run = measure_reranking(reranker, TEXTS)

    assert (run.queries, run.documents, len({query for query, _ in reranker.asked})) == (50, 200, 50)
    assert [passages for _, passages in reranker.asked] == [200] * 51
    assert run.pairs_per_second == 10_000 / run.seconds


def test_encoding_is_the_median_of_the_rounds() -> None:
    service = EmbeddingsService(ENCODER, load_settings(embedding_model="hashing"))

    run = measure_encoding(service, TEXTS, 64, rounds=3)

    assert (run.batch_size, run.texts, run.device_memory_bytes) == (64, 300, None)
    assert run.tokens == int(ENCODER.tokenize(TEXTS).token_counts.sum())
    assert run.texts_per_second == 300 / run.seconds
