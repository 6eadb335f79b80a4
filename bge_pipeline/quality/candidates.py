"""Candidates for the next model, measured on the same texts and queries: how well they find, and how fast they are here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.known_items import known_item_search, scattered_words
from bge_pipeline.quality.label_free import Vectors
from bge_pipeline.quality.metrics import ranking_quality, to_unit_length

_RANKS = 20
_BLOCK = 256
"""Queries that are compared with all passages at once."""


@dataclass(frozen=True)
class Task:
    """What every candidate is given.

    Attributes:
        texts: passages.
        queries: what is searched for among them.
        judged: ids of passages by query where somebody judged them; None where each query is made of a text, the first
            `len(queries)` of the passages.
        ids: of the passages, as the judgements name them; empty without judgements.
    """

    texts: Sequence[str]
    queries: Sequence[str]
    judged: JudgedQueries | None = None
    ids: Sequence[str] = ()

    @property
    def metric(self) -> str:
        """What quality is a mean of."""
        return f"nDCG@{_RANKS}" if self.judged is not None else "MRR of known items"

    def values(self, queries: Vectors, passages: Vectors) -> tuple[float, ...]:
        """Of each query: nDCG@20 by the judgements, or the reciprocal rank of the text that it was made of.

        0 where the query or that text has no vector, but zeros: nothing is nearer to zeros than anything else.
        """
        is_asked = np.asarray(queries.any(axis=1))
        if self.judged is None:
            found = known_item_search(queries, passages, range(len(queries)), k=_RANKS)
            is_asked &= passages[: len(queries)].any(axis=1)
            return _of_asked(found.reciprocal_ranks, is_asked)
        nearest = _nearest(queries, passages, _RANKS)
        rankings = {
            query_id: [self.ids[position] for position in positions]
            for query_id, positions in zip(self.judged.queries, nearest, strict=True)
        }
        return _of_asked(ranking_quality(self.judged.qrels, rankings, _RANKS).ndcg_by_query, is_asked)


def _of_asked(values: Sequence[float], is_asked: NDArray[np.bool_]) -> tuple[float, ...]:
    return tuple(value if asked else 0.0 for value, asked in zip(values, is_asked.tolist(), strict=True))


def known_item_task(texts: Sequence[str], queries: int) -> Task:
    """Search for texts by words scattered over them: harder than by words in a row, which any model finds.

    Raises:
        ConfigurationError: there are fewer than two texts.
    """
    if len(texts) < 2:
        raise ConfigurationError(f"expected a table with two texts or more to compare models on, got {len(texts)}")
    return Task(texts, scattered_words(texts[:queries]))


def judged_task(judged: JudgedQueries, relevant: dict[str, str], others: dict[str, str]) -> Task:
    """Search for judged passages among others.

    Args:
        judged: queries; those without a relevant passage in the table are left out.
        relevant: texts by id of the passages that the judgements name, as far as the table has them.
        others: texts by id of rows to find them among.

    Raises:
        ConfigurationError: fewer than two queries have a relevant passage in the table.
    """
    known = judged.among(relevant)
    if len(known) < 2:
        raise ConfigurationError(
            f"expected two queries or more with relevant passages in the table, got {len(known)} of {len(judged)}",
            next_step="give ids as the table has them: see the file of EVAL_QUERIES in the migration guide",
        )
    texts = relevant | others
    return Task(list(texts.values()), list(known.queries.values()), known, list(texts))


def _nearest(queries: Vectors, passages: Vectors, k: int) -> list[list[int]]:
    """Positions of the k passages nearest to each query by cosine, nearest first."""
    asked, among = to_unit_length(queries), to_unit_length(passages)
    k = min(k, len(among))
    found: list[list[int]] = []
    for first in range(0, len(asked), _BLOCK):
        similarity = asked[first : first + _BLOCK] @ among.T
        found.extend(np.argsort(-similarity, axis=1, kind="stable")[:, :k].tolist())
    return found
