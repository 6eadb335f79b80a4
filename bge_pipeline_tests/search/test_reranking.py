"""Putting candidates in the cross-encoder's order, or saying why not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bge_pipeline.errors import EncodingError
from bge_pipeline.search.certainty import Certainty
from bge_pipeline.search.reranking import rerank
from bge_pipeline.search.results import SearchResult

CANDIDATES = [SearchResult(n, "x" * n, 1 / n, dense_rank=n, distance=0.5 + 0.001 * n) for n in range(1, 6)]
SURE = [SearchResult(n, "x" * n, 1 / n, dense_rank=n, distance=0.1 * n) for n in range(1, 6)]


class LikesLongTexts:
    def score(self, _query: str, docs: Sequence[str]) -> np.ndarray:
        return np.array([len(doc) for doc in docs], np.float32)


class Returns:
    def __init__(self, *scores: float) -> None:
        self._scores = scores

    def score(self, _query: str, _docs: Sequence[str]) -> np.ndarray:
        return np.array(self._scores)


class Raises:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def score(self, _query: str, _docs: Sequence[str]) -> np.ndarray:
        raise self._error


def test_always_orders_all_candidates_by_the_cross_encoder() -> None:
    result = rerank("q", CANDIDATES, "always", LikesLongTexts, Certainty())
    assert [c.id for c in result.candidates] == [5, 4, 3, 2, 1]
    assert result.reranked
    assert [(c.score, c.rerank_score) for c in result.candidates[:2]] == [(5.0, 5.0), (4.0, 4.0)]
    assert result.candidates[0].dense_rank == 5


def test_never_loads_no_model() -> None:
    def load() -> None:
        pytest.fail("the reranker was loaded")

    assert [c.id for c in rerank("q", CANDIDATES, "never", load, Certainty()).candidates] == [1, 2, 3, 4, 5]
    assert not rerank("q", SURE, "auto", load, Certainty()).reranked
    assert not rerank("q", [], "always", load, Certainty()).reranked


def test_auto_reranks_when_the_first_stage_is_unsure() -> None:
    assert rerank("q", CANDIDATES, "auto", LikesLongTexts, Certainty()).reranked


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (lambda: None, "no reranker could be loaded"),
        (lambda: Raises(EncodingError("no memory for even one pair")), "no memory for even one pair"),
        (lambda: Raises(torch.OutOfMemoryError("CUDA out of memory.")), "OutOfMemoryError: CUDA out of memory."),
        (lambda: Raises(RuntimeError("CUDA error: device-side assert")), "RuntimeError: CUDA error"),
        (lambda: Raises(ConnectionError("refused")), "ConnectionError: refused"),
        (lambda: Returns(1, 2), "expected a number for each of 5 passages"),
        (lambda: Returns(1, 2, 3, 4, float("nan")), "with 1 that are none"),
    ],
)
def test_a_reranker_that_is_missing_or_fails_leaves_the_order_and_warns(load, says: str) -> None:
    result = rerank("q", CANDIDATES, "always", load, Certainty())
    assert [c.id for c in result.candidates] == [1, 2, 3, 4, 5]
    assert not result.reranked
    assert says in result.warning
    assert "order of the first stage" in result.warning
