"""Ranking metrics agree with values worked out by hand and with published ones."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from bge_pipeline.quality.metrics import (
    RBO_PERSISTENCE,
    overlap_at_k,
    paired_difference,
    rank_biased_overlap,
    ranking_quality,
)


def test_ranking_quality_is_what_a_hand_computes() -> None:
    qrels = {"a": {"1": 2, "2": 1}, "b": {"9": 1}, "c": {"5": 1}}
    quality = ranking_quality(qrels, {"a": ["3", "1"], "b": ["9", "8"], "c": []}, k=20)
    ndcg_of_a = (2 / log2(3)) / (2 / log2(2) + 1 / log2(3))

    assert quality.query_ids == ("a", "b", "c")
    assert quality.ndcg_by_query == pytest.approx((ndcg_of_a, 1.0, 0.0))
    assert quality.ndcg == pytest.approx((ndcg_of_a + 1) / 3)
    assert quality.recall == pytest.approx((0.5 + 1 + 0) / 3)
    assert quality.mrr == pytest.approx((0.5 + 1 + 0) / 3)
    assert quality.as_metadata() == {
        "queries": 3, "ndcg@20": quality.ndcg, "recall@20": quality.recall, "mrr@20": quality.mrr,
    }  # fmt: skip


def test_only_the_first_k_ranks_count() -> None:
    quality = ranking_quality({"a": {"3": 1}}, {"a": ["1", "2", "3"]}, k=2)

    assert (quality.ndcg, quality.recall, quality.mrr) == (0, 0, 0)


def test_the_order_given_decides_and_not_the_ids() -> None:
    first = ranking_quality({"a": {"1": 1}}, {"a": ["1", "2"]})
    last = ranking_quality({"a": {"1": 1}}, {"a": ["2", "1"]})

    assert first.mrr == 1
    assert last.mrr == 0.5


def test_a_query_without_a_ranking_counts_as_zero() -> None:
    assert ranking_quality({"a": {"1": 1}, "b": {"1": 1}}, {"a": ["1"]}).ndcg == 0.5


def test_rankings_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one judged query"):
        ranking_quality({}, {})
    with pytest.raises(ValueError, match="repetition for query a"):
        ranking_quality({"a": {"1": 1}}, {"a": ["1", "1"]})


def test_overlap_ignores_the_order() -> None:
    assert overlap_at_k([[1, 2, 3, 4], [1, 2, 3, 4]], [[4, 3, 9, 8], [4, 3, 2, 1]]).tolist() == [0.5, 1.0]


def test_rank_biased_overlap_is_one_for_equal_and_zero_for_disjoint_rankings() -> None:
    rankings = np.arange(20)[None]

    assert rank_biased_overlap(rankings, rankings).tolist() == pytest.approx([1.0])
    assert rank_biased_overlap(rankings, rankings + 20).tolist() == [0.0]


def test_rank_biased_overlap_follows_the_published_formula() -> None:
    # Webber et al. (2010), equation 30: X_k/k p^k + (1-p)/p * sum of X_d/d p^d
    swapped = rank_biased_overlap([[1, 2]], [[2, 1]], p=0.5)
    same_head = rank_biased_overlap([["a", "b", "c"]], [["a", "c", "x"]], p=0.9)

    assert swapped.tolist() == pytest.approx([0.5])
    assert same_head.tolist() == pytest.approx([2 / 3 * 0.9**3 + 0.1 / 0.9 * (0.9 + 1 / 2 * 0.9**2 + 2 / 3 * 0.9**3)])


def test_the_first_ten_ranks_carry_the_weight_that_was_published() -> None:
    # Webber et al. (2010), section 4.3: p = 0.9 gives 86 % of the weight to the first ten ranks
    p, depth = RBO_PERSISTENCE, 10
    series = sum(p**d / d for d in range(1, depth))
    weight = 1 - p ** (depth - 1) + (1 - p) / p * depth * (np.log(1 / (1 - p)) - series)

    assert weight == pytest.approx(0.86, abs=0.005)


def test_agreement_near_the_top_counts_more_than_near_the_bottom() -> None:
    ranking = np.arange(10)
    top_changed, bottom_changed = ranking.copy(), ranking.copy()
    top_changed[0], bottom_changed[-1] = 99, 99
    at_top, at_bottom = rank_biased_overlap([ranking, ranking], [top_changed, bottom_changed])

    assert at_top < at_bottom < 1


@pytest.mark.parametrize("function", [overlap_at_k, rank_biased_overlap])
def test_rankings_of_different_shape_cannot_be_compared(function: object) -> None:
    with pytest.raises(ValueError, match="same shape"):
        function([[1, 2]], [[1, 2, 3]])  # type: ignore[operator]


def test_a_clear_difference_is_significant_and_its_interval_excludes_zero() -> None:
    old = np.random.default_rng(0).uniform(0.2, 0.6, 60)
    difference = paired_difference(old + np.random.default_rng(1).normal(0.1, 0.05, 60), old, resamples=999)

    assert difference.mean == pytest.approx(0.1, abs=0.03)
    assert 0 < difference.low < difference.mean < difference.high
    assert difference.p_value < 0.01


def test_noise_is_not_significant() -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, 60)
    difference = paired_difference(noise - noise.mean(), np.zeros(60), resamples=999)

    assert difference.low < 0 < difference.high
    assert difference.p_value > 0.5


def test_equal_systems_do_not_differ() -> None:
    difference = paired_difference([0.5, 0.25], [0.5, 0.25])

    assert (difference.mean, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_one_query_is_too_few_to_compare_systems() -> None:
    with pytest.raises(ValueError, match="at least two queries"):
        paired_difference([0.5], [0.4])
