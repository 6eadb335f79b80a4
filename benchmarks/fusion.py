"""Which constants of the fusion other corpora choose: leave one corpus out, from the two ranked lists of each query.

Chosen are the constants of the largest mean gain over the corpora, among those that do no significant harm on any: where
the first 20 by words hold no answer, words can only displace, and there the upper end of the 95 % interval of the mean
difference in nDCG@20 from the vectors alone must not be below 0. A corpus with fewer than 30 such queries cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
K = 20
LEAST_QUERIES = 30
RESAMPLES = 2_000


@dataclass(frozen=True)
class Constants:
    """Of the score 1 / (dense_k + rank by vectors) + weight * standing above background_rank by words."""

    dense_k: int
    weight: float
    background_rank: int

    def __str__(self) -> str:
        return f"{self.dense_k}, {self.weight:g}, {self.background_rank}"


GRID = [
    Constants(*c) for c in product((1, 2, 3, 4, 5, 7, 10), (0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2), (50, 100, 200))
]


@dataclass(frozen=True)
class RankedLists:
    """What vectors and words find for one query, and how it is judged.

    Attributes:
        dense: ids, nearest first.
        words: ids, best first, and `scores` their BM25.
        grades: by id.
    """

    dense: Sequence[str]
    words: Sequence[str]
    scores: Sequence[float]
    grades: Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """Of all constants on one corpus.

    Attributes:
        gain: nDCG@20 minus that of the vectors alone, float (constants, queries).
        misled: bool (queries,), whether the first 20 by words hold no answer.
    """

    gain: Floats
    misled: NDArray[np.bool_]


def try_all(queries: Sequence[RankedLists], grid: Sequence[Constants] = GRID) -> Outcome:
    """Fuse the lists of each query by each of the constants."""
    misled = [not any(identifier in query.grades for identifier in query.words[:K]) for query in queries]
    return Outcome(np.stack([_gains(query, grid) for query in queries], axis=1), np.array(misled))


def choose(outcomes: Sequence[Outcome], grid: Sequence[Constants] = GRID) -> Constants | None:
    """The constants that these corpora choose, each corpus counting the same; None if all do harm."""
    gain = np.mean([outcome.gain.mean(axis=1) for outcome in outcomes], axis=0)
    harmless = np.all([_highest(outcome.gain[:, outcome.misled]) >= 0 for outcome in outcomes], axis=0)
    return grid[int(np.argmax(np.where(harmless, gain, -np.inf)))] if harmless.any() else None


def _highest(gain: Floats) -> Floats:
    """Upper end of the 95 % bootstrap interval of the mean, float (constants,); 0 where there are too few queries."""
    queries = gain.shape[1]
    if queries < LEAST_QUERIES:
        return np.zeros(len(gain))
    drawn = np.random.default_rng(0).multinomial(queries, np.full(queries, 1 / queries), RESAMPLES) / queries
    highest: Floats = np.quantile(gain @ drawn.T, 0.975, axis=1)
    return highest


def _gains(query: RankedLists, grid: Sequence[Constants]) -> Floats:
    ids = list(dict.fromkeys([*query.dense, *query.words]))
    place = {identifier: position for position, identifier in enumerate(ids)}
    ranks = np.full(len(ids), np.inf)
    ranks[: len(query.dense)] = np.arange(1, len(query.dense) + 1)
    by_words = [place[identifier] for identifier in query.words]
    scores = np.asarray(query.scores, np.float64)
    grades = np.array([query.grades.get(identifier, 0) for identifier in ids], np.float64)
    ideal = _dcg(np.sort(np.asarray(list(query.grades.values()), np.float64))[::-1][None, :K])[0]
    fused = np.stack([1 / (constants.dense_k + ranks) for constants in grid])
    if len(scores):
        for row, constants in zip(fused, grid, strict=True):
            row[by_words] += constants.weight * _standing(scores, constants.background_rank)
    order = np.argsort(-fused, axis=1, kind="stable")[:, :K]
    gains: Floats = (_dcg(grades[order]) - _dcg(grades[None, : len(query.dense)][:, :K])) / ideal
    return gains


def _standing(scores: Floats, background_rank: int) -> Floats:
    background = scores[background_rank - 1] if len(scores) >= background_rank else 0.0
    standing: Floats = np.maximum(scores - background, 0) / scores[0]
    return standing


def _dcg(grades: Floats) -> Floats:
    """Discounted cumulative gain: (rankings, ranks) -> (rankings,)."""
    dcg: Floats = (grades / np.log2(np.arange(grades.shape[1]) + 2)).sum(axis=1)
    return dcg
