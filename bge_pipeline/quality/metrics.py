"""Ranking metrics: nDCG, recall and reciprocal rank by ir-measures, agreement of two rankings, and significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rankings = Mapping[str, Sequence[str]]
"""Passage ids, best first, by query id."""

RBO_PERSISTENCE = 0.9
"""With 0.9 the first ten ranks carry 86 % of the weight (Webber et al. 2010, equation 21)."""


NORMAL_95 = 1.96
"""Standard errors to either side of a mean that hold 95% of a normal distribution."""


@dataclass(frozen=True)
class RankingQuality:
    """Means over queries, and each query's values in the order of `query_ids`.

    Attributes:
        k: ranks looked at.
        ndcg: nDCG@k with the grade as gain and log2(rank + 1) as discount (trec_eval's `ndcg_cut`).
        recall: share of a query's relevant passages among the first k.
        mrr: reciprocal rank of the first relevant passage among the first k.
        query_ids, ndcg_by_query: for comparisons query by query.
    """

    k: int
    ndcg: float
    recall: float
    mrr: float
    query_ids: tuple[str, ...]
    ndcg_by_query: tuple[float, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Means as plain JSON values."""
        return {
            "queries": len(self.query_ids),
            f"ndcg@{self.k}": self.ndcg,
            f"recall@{self.k}": self.recall,
            f"mrr@{self.k}": self.mrr,
        }


def ranking_quality(qrels: Mapping[str, Mapping[str, int]], rankings: Rankings, k: int = 20) -> RankingQuality:
    """Judge rankings; a judged query without a ranking counts as zero, passages without a judgement as not relevant.

    Raises:
        ValueError: there is no judged query, or a ranking names a passage twice.
    """
    import ir_measures
    from ir_measures import RR, R, nDCG

    if not qrels:
        raise ValueError("expected at least one judged query, got none")
    run: dict[str, dict[str, float]] = {}
    for query_id in qrels:
        ranking = rankings.get(query_id, ())[:k]
        run[query_id] = {passage_id: float(-rank) for rank, passage_id in enumerate(ranking)}
        if len(run[query_id]) < len(ranking):
            raise ValueError(f"expected every passage once in a ranking, got a repetition for query {query_id}")
    measures = {"ndcg": nDCG @ k, "recall": R @ k, "mrr": RR @ k}
    values: dict[str, dict[str, float]] = {name: {} for name in measures}
    names = {measure: name for name, measure in measures.items()}
    for metric in ir_measures.pytrec_eval.iter_calc(list(measures.values()), dict(qrels), run):
        values[names[metric.measure]][metric.query_id] = metric.value
    query_ids = tuple(qrels)
    ndcg_by_query = tuple(values["ndcg"].get(query_id, 0.0) for query_id in query_ids)
    means = {name: sum(by_query.values()) / len(query_ids) for name, by_query in values.items()}
    return RankingQuality(k=k, query_ids=query_ids, ndcg_by_query=ndcg_by_query, **means)


def to_unit_length(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Rows scaled to unit length; a row without direction stays zero."""
    unit = vectors.astype(np.float32)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(lengths == 0, 1, lengths)
    return unit


def overlap_at_k(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Share of items that two rankings have in common, row by row: (n, k) and (n, k) -> (n,).

    Raises:
        ValueError: the shapes differ.
    """
    shares: NDArray[np.float64] = _same_item(one, other).any(axis=2).mean(axis=1)
    return shares


def rank_biased_overlap(one: ArrayLike, other: ArrayLike, p: float = RBO_PERSISTENCE) -> NDArray[np.float64]:
    """Agreement of two rankings that counts the first ranks most, row by row: (n, k) and (n, k) -> (n,).

    RBO_EXT of Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010,
    equation 30, for rankings of equal length without repetitions: 0 for disjoint, 1 for equal rankings.

    Raises:
        ValueError: the shapes differ, or p is not between 0 and 1.
    """
    if not 0 < p < 1:
        raise ValueError(f"expected 0 < p < 1, got {p}")
    same = _same_item(one, other)
    k = same.shape[1]
    seen_by_both_at = np.maximum.outer(np.arange(k), np.arange(k))
    shared = np.stack([same[:, seen_by_both_at == depth].sum(axis=1) for depth in range(k)], axis=1).cumsum(axis=1)
    depths = np.arange(1, k + 1)
    agreement: NDArray[np.float64] = shared[:, -1] / k * p**k + (1 - p) / p * (shared / depths * p**depths).sum(axis=1)
    return agreement


@dataclass(frozen=True)
class Difference:
    """How much better one system is than another over the same queries.

    Attributes:
        mean: mean of new minus old.
        low, high: bounds of the confidence interval of that mean.
        p_value: chance of a difference at least this large if the two systems were equally good.
        confidence: of the interval, for example 0.95.
    """

    mean: float
    low: float
    high: float
    p_value: float
    confidence: float

    def as_metadata(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        return asdict(self)


def paired_difference(
    new: ArrayLike, old: ArrayLike, *, confidence: float = 0.95, resamples: int = 9_999, seed: int = 0
) -> Difference:
    """Compare two systems by their values for the same queries.

    The interval is a percentile bootstrap over queries, the p-value a two-sided randomisation test that exchanges the
    systems query by query (Smucker, Allan and Carterette, CIKM 2007). Deterministic for a seed.

    Raises:
        ValueError: the lengths differ, or there are fewer than two queries.
    """
    from scipy import stats

    differences = np.asarray(new, np.float64) - np.asarray(old, np.float64)
    if differences.ndim != 1 or len(differences) < 2:
        raise ValueError(f"expected values of at least two queries, got shape {differences.shape}")
    mean = float(differences.mean())
    if not differences.any():
        return Difference(mean=0.0, low=0.0, high=0.0, p_value=1.0, confidence=confidence)
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        random_state=seed,
    ).confidence_interval
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=resamples, random_state=seed
    )
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), confidence)


def _same_item(one: ArrayLike, other: ArrayLike) -> NDArray[np.bool_]:
    """(n, k, k): whether rank i of the one and rank j of the other are the same item."""
    first, second = np.asarray(one), np.asarray(other)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"expected two arrays of the same shape (n, k), got {first.shape} and {second.shape}")
    same: NDArray[np.bool_] = first[:, :, None] == second[:, None, :]
    return same
