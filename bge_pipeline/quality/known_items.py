"""Known items: rows of the table that words out of their own text should find. Needs no labels and no old vectors."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bge_pipeline.quality.label_free import Vectors
from bge_pipeline.quality.metrics import NORMAL_95, to_unit_length

_BLOCK_BYTES = 64 * 2**20
_FEWEST_WORDS = 8
_MOST_WORDS = 40
_SAME_SIMILARITY = 1e-6
"""Rows of one text have one similarity, but for the rounding of a matrix product."""


@dataclass(frozen=True)
class KnownItemSearch:
    """Whether words of a row's text find that row.

    Attributes:
        queries: texts whose words were searched for.
        rows: rows searched in.
        k: ranks looked at.
        success_at_1, success_at_k: share of queries whose row came first, or among the first k.
        mrr: mean reciprocal rank of the row.
        reciprocal_ranks: of each query's row, for comparisons query by query.
    """

    queries: int
    rows: int
    k: int
    success_at_1: float
    success_at_k: float
    mrr: float
    reciprocal_ranks: tuple[float, ...] = field(default=(), repr=False)

    @property
    def highest_success(self) -> float:
        """The upper end of the 95% interval of `success_at_k` (Wilson): so few queries may understate it so much."""
        n, p, z = self.queries, self.success_at_k, NORMAL_95
        middle = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle + spread) / (1 + z * z / n)

    def as_metadata(self) -> dict[str, Any]:
        """Means as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "reciprocal_ranks"}

    def summary(self) -> str:
        """The result in a sentence."""
        return (
            f"{self.success_at_k:.1%} of {self.queries:,} texts are found by words out of them among the first {self.k} of "
            f"{self.rows:,} (first: {self.success_at_1:.1%}, MRR {self.mrr:.3f})"
        )


def excerpts(texts: Sequence[str], *, words: int = 12) -> list[str]:
    """A run of words from inside each text, to search for as a known item; a text with fewer words is taken whole.

    Where the run begins follows from the text, so that the same text gives the same excerpt every time.
    """
    found = []
    for text in texts:
        parts = text.split()
        first = zlib.crc32(text.encode()) % max(1, len(parts) - words + 1)
        found.append(" ".join(parts[first : first + words]))
    return found


def scattered_words(texts: Sequence[str], *, words: int | None = None) -> list[str]:
    """Words from all over each text, in its order, to search for it by them; a text with fewer words is taken whole.

    A run of words would be found by a model that reads one part of a text well, and by one whose vectors follow phrases.
    Which words are taken follows from the text, so that the same text gives the same words every time.

    Args:
        texts: where the words are taken from.
        words: how many; None for a third of the text, 8 to 40.
    """
    found = []
    for text in texts:
        parts = text.split()
        wanted = words or min(_MOST_WORDS, max(_FEWEST_WORDS, len(parts) // 3))
        chosen = random.Random(zlib.crc32(text.encode())).sample(range(len(parts)), min(wanted, len(parts)))  # noqa: S311
        found.append(" ".join(parts[place] for place in sorted(chosen)))
    return found


def known_item_search(queries: Vectors, rows: Vectors, answers: Sequence[int], k: int = 20) -> KnownItemSearch:
    """Search for items whose place is known. Rows as similar as the answer do not count against it.

    Args:
        queries: (m, d), vectors of words out of the rows' texts, made as queries are.
        rows: (n, d), vectors of the rows searched in.
        answers: for each query, the position in `rows` of the row it was taken from.
        k: ranks looked at.

    Raises:
        ValueError: there is no query, or their number is not that of the answers.
    """
    if len(queries) != len(answers) or not len(answers):
        raise ValueError(f"expected one answer for each of one or more queries, got {len(answers)} for {len(queries)}")
    unit_queries, unit_rows = to_unit_length(queries), to_unit_length(rows)
    positions = np.asarray(answers)
    ranks = np.empty(len(positions), np.int64)
    block = max(1, _BLOCK_BYTES // (unit_rows.itemsize * len(unit_rows)))
    for first in range(0, len(positions), block):
        similarity = unit_queries[first : first + block] @ unit_rows.T
        of_answer = np.take_along_axis(similarity, positions[first : first + block, None], axis=1)
        ranks[first : first + block] = 1 + (similarity > of_answer + _SAME_SIMILARITY).sum(axis=1)
    return KnownItemSearch(
        queries=len(positions),
        rows=len(unit_rows),
        k=k,
        success_at_1=float((ranks == 1).mean()),
        success_at_k=float((ranks <= k).mean()),
        mrr=float((1 / ranks).mean()),
        reciprocal_ranks=tuple((1 / ranks).tolist()),
    )
