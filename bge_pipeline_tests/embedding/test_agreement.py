import numpy as np
import pytest

from bge_pipeline.embedding.agreement import Agreement, compare_scores, compare_vectors
from bge_pipeline.embedding.calibration import docstrings, sample_texts


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_agree_with_themselves():
    agreement = compare_vectors(unit_vectors(50), unit_vectors(50))
    assert agreement.is_enough
    assert agreement.figures == pytest.approx({"mean_cosine": 1, "min_cosine": 1, "neighbour_overlap": 1})


def test_one_vector_gone_wrong_is_found():
    vectors = unit_vectors(50)
    vectors[17] = -vectors[17]
    agreement = compare_vectors(vectors, unit_vectors(50))
    assert not agreement.is_enough
    assert any("min cosine -1.0000, expected at least" in shortfall for shortfall in agreement.shortfalls)


def test_shuffled_rows_are_found():
    assert not compare_vectors(np.roll(unit_vectors(50), 1, axis=0), unit_vectors(50)).is_enough


def test_a_figure_that_is_no_number_is_not_enough():
    vectors = unit_vectors(20)
    vectors[3] = np.nan
    assert not compare_vectors(vectors, unit_vectors(20)).is_enough


def test_a_single_text_cannot_be_compared():
    with pytest.raises(ValueError, match="at least two rows"):
        compare_vectors(unit_vectors(1), unit_vectors(1))


def test_scores_agree_when_they_rank_alike():
    scores = np.random.default_rng(0).standard_normal((100, 1)).astype(np.float32)
    assert compare_scores(3 * scores - 5, scores).is_enough
    assert not compare_scores(-scores, scores).is_enough


def test_a_verdict_survives_being_written_down():
    agreement = compare_vectors(unit_vectors(20), unit_vectors(20))
    assert Agreement(**agreement.as_dict()) == agreement


def test_the_users_texts_are_sampled_evenly_and_each_once():
    texts = [f"text {number}" for number in range(1_000)] * 2
    sample = sample_texts(texts, 100)
    assert len(set(sample)) == 100
    assert sample[::50] == ["text 0", "text 500"]


def test_too_few_texts_are_topped_up_with_docstrings():
    sample = sample_texts(["only one", "  "], 50)
    assert len(set(sample)) == 50
    assert sample[0] == "only one"
    assert set(sample[1:]) <= set(docstrings())
