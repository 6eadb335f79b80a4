"""How well the outputs of one model, run in two ways, agree, and when int8 is near enough to fp32 to stand in for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 10

INT8_VECTOR_BOUNDS = {"mean_cosine": 0.99, "min_cosine": 0.90, "neighbour_overlap": 0.90}
"""The least agreement with fp32 at which int8 vectors may share a column with those of other precisions.

Measured with all-MiniLM-L6-v2 on 256 docstrings: bf16 has a mean cosine above 0.9999, int8 0.998 with 0.992 the smallest
and 95% of the neighbours.
"""

INT8_SCORE_BOUNDS = {"rank_correlation": 0.97}


@dataclass(frozen=True)
class Agreement:
    """Outputs for the same texts, run in two ways, compared.

    Attributes:
        texts: how many, or how many pairs.
        figures: each measure by name; larger is better and 1 is perfect.
        bounds: the least that each measure must reach for the two ways to stand in for each other.
    """

    texts: int
    figures: dict[str, float]
    bounds: dict[str, float] = field(default_factory=dict)

    @property
    def is_enough(self) -> bool:
        """Whether every bound is met."""
        return not self.shortfalls

    @property
    def shortfalls(self) -> list[str]:
        """Each bound that is missed, in words. A figure that is not a number misses it."""
        return [
            f"{name.replace('_', ' ')} {self.figures[name]:.4f}, expected at least {bound}"
            for name, bound in self.bounds.items()
            if not self.figures[name] >= bound
        ]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; `Agreement(**values)` reads them back."""
        return asdict(self)


def compare_vectors(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> Agreement:
    """Agreement of unit vectors (n, dimensions) with a reference, row by row.

    Figures: mean and smallest cosine between the two vectors of a text, and the mean share of a text's 10 nearest
    neighbours among the others that both name.

    Raises:
        ValueError: fewer than two texts, where there are no neighbours to compare.
    """
    if len(vectors) < 2 or vectors.shape != reference.shape:
        raise ValueError(f"expected two equal shapes of at least two rows, got {vectors.shape} and {reference.shape}")
    cosines = np.einsum("ij,ij->i", vectors, reference, dtype=np.float64)
    count = min(NEIGHBOURS, len(vectors) - 1)
    shared = [
        len(np.intersect1d(ours, theirs))
        for ours, theirs in zip(_neighbours(vectors, count), _neighbours(reference, count), strict=True)
    ]
    figures = {
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
        "neighbour_overlap": float(np.mean(shared)) / count,
    }
    return Agreement(len(vectors), figures, INT8_VECTOR_BOUNDS)


def compare_scores(scores: NDArray[np.float32], reference: NDArray[np.float32]) -> Agreement:
    """Agreement of relevance scores (n, 1) with a reference: Spearman's rank correlation."""
    ranks, reference_ranks = (np.argsort(np.argsort(values[:, 0])) for values in (scores, reference))
    correlation = float(np.corrcoef(ranks, reference_ranks)[0, 1])
    return Agreement(len(scores), {"rank_correlation": correlation}, INT8_SCORE_BOUNDS)


def _neighbours(vectors: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argpartition(-similarities, count - 1, axis=1)[:, :count]
