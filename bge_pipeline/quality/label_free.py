"""Evidence without labels: neighbours old and new, stored vectors made again. NumPy only; known items are elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.quality.bounds import MIN_ROWS_PER_NEIGHBOUR, SAME_VECTOR_COSINE, UNIT_LENGTH_TOLERANCE
from bge_pipeline.quality.metrics import NORMAL_95, RBO_PERSISTENCE, overlap_at_k, rank_biased_overlap, to_unit_length

Vectors = NDArray[np.floating[Any]]

_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class NeighbourAgreement:
    """Whether rows that were neighbours under the old model still are under the new one.

    Two good models of different make agree on far more neighbours than chance and on far fewer than all.

    Attributes:
        rows: sampled rows.
        k: neighbours of each row.
        overlap: mean share of the k nearest neighbours that both spaces have.
        rank_biased_overlap: the same with more weight on the nearest.
        chance_overlap: what unrelated vectors would give, k / (rows - 1).
        standard_error: of `overlap`, over the rows.
    """

    rows: int
    k: int
    overlap: float
    rank_biased_overlap: float
    chance_overlap: float
    standard_error: float = 0.0

    @property
    def highest_above_chance(self) -> float:
        """The upper end of the 95% interval of `above_chance`: a sample as small as this one may understate it so much."""
        return self.above_chance + NORMAL_95 * self.standard_error / (1 - self.chance_overlap)

    @property
    def above_chance(self) -> float:
        """The overlap corrected for chance: 0 for unrelated vectors, 1 for equal rankings, whatever the rows and k."""
        return (self.overlap - self.chance_overlap) / (1 - self.chance_overlap)

    def as_metadata(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {**asdict(self), "above_chance": self.above_chance}

    def summary(self) -> str:
        """The result in a sentence."""
        return (
            f"{self.overlap:.1%} of the {self.k} nearest neighbours are the same in both spaces, "
            f"{self.chance_overlap:.1%} would be by chance ({self.rows:,} rows, RBO {self.rank_biased_overlap:.3f})"
        )


@dataclass(frozen=True)
class StoredVectorAgreement:
    """Whether the stored vectors are those that the model makes of the stored texts.

    Attributes:
        rows: rows embedded again.
        mean_cosine, min_cosine: between the stored and the recomputed vector of the same row.
        matching_share: share of rows whose cosine reaches `threshold`.
        threshold: cosine that counts as the same vector in another arithmetic.
        unit_length_share: share of stored vectors of unit length.
    """

    rows: int
    mean_cosine: float
    min_cosine: float
    matching_share: float
    threshold: float
    unit_length_share: float

    def as_metadata(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """The result in a sentence."""
        return (
            f"{self.matching_share:.1%} of {self.rows:,} stored vectors are what the model makes of their texts "
            f"(cosine mean {self.mean_cosine:.4f}, least {self.min_cosine:.4f}; {self.unit_length_share:.1%} of unit length)"
        )


def exact_neighbours(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """The k nearest other rows of every row by cosine, nearest first: (n, d) -> (n, k); memory does not grow with n².

    Raises:
        ValueError: there are not more than k rows.
    """
    if len(vectors) <= k:
        raise ValueError(f"expected more than {k} rows, got {len(vectors)}")
    unit = to_unit_length(vectors)
    neighbours = np.empty((len(unit), k), np.int64)
    block = max(1, _BLOCK_BYTES // (unit.itemsize * len(unit)))
    for first in range(0, len(unit), block):
        similarity = unit[first : first + block] @ unit.T
        inside = np.arange(len(similarity))
        similarity[inside, first + inside] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1, kind="stable")
        neighbours[first : first + block] = np.take_along_axis(nearest, order, axis=1)
    return neighbours


def neighbour_agreement(old: Vectors, new: Vectors, k: int = 20) -> NeighbourAgreement:
    """Compare the exact nearest neighbours of the same rows in two spaces.

    Args:
        old: (n, d_old), the sampled rows' vectors of the old model.
        new: (n, d_new), their vectors of the new model, in the same order.
        k: neighbours of each row.

    Raises:
        ValueError: the numbers of rows differ, or there are fewer than `MIN_ROWS_PER_NEIGHBOUR` rows per neighbour.
    """
    if len(old) != len(new):
        raise ValueError(f"expected old and new vectors of the same rows, got {len(old)} and {len(new)}")
    if len(old) < MIN_ROWS_PER_NEIGHBOUR * k:
        raise ValueError(
            f"expected at least {MIN_ROWS_PER_NEIGHBOUR * k} rows to compare {k} neighbours, got {len(old)}"
        )
    before, after = exact_neighbours(old, k), exact_neighbours(new, k)
    overlaps = overlap_at_k(before, after)
    return NeighbourAgreement(
        rows=len(old),
        k=k,
        overlap=float(overlaps.mean()),
        rank_biased_overlap=float(rank_biased_overlap(before, after, RBO_PERSISTENCE).mean()),
        chance_overlap=k / (len(old) - 1),
        standard_error=float(overlaps.std(ddof=1) / np.sqrt(len(overlaps))),
    )


def stored_vectors_match(stored: Vectors, recomputed: Vectors) -> StoredVectorAgreement:
    """Compare stored vectors with those that the model makes of the same rows' texts now.

    The strongest evidence without labels: another pooling, another model, rows exchanged or vectors of another length
    all show, whatever they do to search.

    Args:
        stored: (n, d), as read from the column.
        recomputed: (n, d), by the model that should have made them.

    Raises:
        ValueError: the shapes differ, or there is no row.
    """
    if stored.shape != recomputed.shape or not len(stored):
        raise ValueError(f"expected vectors of the same rows, got shapes {stored.shape} and {recomputed.shape}")
    cosines = np.einsum("ij,ij->i", to_unit_length(stored), to_unit_length(recomputed))
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    return StoredVectorAgreement(
        rows=len(stored),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        matching_share=float((cosines >= SAME_VECTOR_COSINE).mean()),
        threshold=SAME_VECTOR_COSINE,
        unit_length_share=float((np.abs(lengths - 1) <= UNIT_LENGTH_TOLERANCE).mean()),
    )
