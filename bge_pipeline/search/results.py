"""What a search returns. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SearchMode = Literal["dense", "lexical", "hybrid"]
RerankMode = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class SearchResult:
    """One row that was found.

    Attributes:
        id: value of the id column; a tuple of those of several, in the order of TARGET_ID_COLUMN.
        text: value of the text column.
        score: what the row was ranked by, higher is better: the reranker's score, else the fused score, cosine
            similarity (negative distance on an index of another metric) or BM25, by mode.
        columns: the columns asked for.
        dense_rank: rank among the nearest vectors, from 1; None if not among the candidates.
        lexical_rank: rank by words, from 1; None if not among the candidates.
        distance: between the query's and the row's vector, None without a dense rank.
        lexical_score: BM25, None without a lexical rank.
        rerank_score: the cross-encoder's score; None if it did not see the row.
    """

    id: Any
    text: str
    score: float
    columns: dict[str, Any] = field(default_factory=dict)
    dense_rank: int | None = None
    lexical_rank: int | None = None
    distance: float | None = None
    lexical_score: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True)
class StageSeconds:
    """Where the time of one search went; `encode` includes query expansion."""

    encode: float = 0.0
    database: float = 0.0
    rerank: float = 0.0

    @property
    def total(self) -> float:
        """All stages together."""
        return self.encode + self.database + self.rerank


@dataclass(frozen=True)
class SearchResponse:
    """The results, best first, and how they came about.

    Attributes:
        results: at most as many as were asked for.
        mode: how candidates were found.
        reranked: whether the cross-encoder put them in this order.
        warnings: what went wrong without stopping the search.
        explanation: the warnings and what was decided, line by line; with `explain` also the server's plan.
        seconds: by stage.
    """

    results: tuple[SearchResult, ...]
    mode: SearchMode
    reranked: bool
    warnings: tuple[str, ...]
    explanation: str
    seconds: StageSeconds

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"seconds": asdict(self.seconds) | {"total": self.seconds.total}}
