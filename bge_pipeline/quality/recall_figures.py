"""Figures about an ANN index: its recall, and the search effort that a wanted recall takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class AnnRecall:
    """What the index finds of the exact nearest neighbours.

    Attributes:
        recall: mean share of the exact first k that the index returned.
        k: neighbours looked at.
        queries: how many were asked.
        index: the index, as text; None where there is none and every search is exact.
        session: run-time parameters in use.
        exact_ms, index_ms: median milliseconds of one search.
    """

    recall: float
    k: int
    queries: int
    index: str | None
    session: dict[str, int | str]
    exact_ms: float
    index_ms: float

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class RecallPoint:
    """Recall and median milliseconds of one search at one value of probes or ef_search."""

    value: int
    recall: float
    milliseconds: float


@dataclass(frozen=True)
class RecallRecommendation:
    """The least value that reaches the wanted recall.

    Attributes:
        setting: SEARCH_PROBES or SEARCH_EF_SEARCH.
        value: the value to set it to, the largest tried if none sufficed.
        default: what is used when it is not set.
        reached: whether the wanted recall was reached.
        wanted: the wanted recall.
        points: every value that was tried, ascending.
    """

    setting: str
    value: int
    default: int
    reached: bool
    wanted: float
    points: tuple[RecallPoint, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
