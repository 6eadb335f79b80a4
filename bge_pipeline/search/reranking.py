"""Putting candidates in the cross-encoder's order, or leaving them and saying why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.errors import BgePipelineError
from bge_pipeline.search.certainty import Certainty
from bge_pipeline.search.results import RerankMode, SearchResult


class ScoresPassages(Protocol):
    """What is asked of a cross-encoder."""

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Relevance float32 (n,) of passages for the query, in order; larger is more relevant."""
        ...


@dataclass(frozen=True)
class Reranking:
    """Candidates after the rerank stage.

    Attributes:
        candidates: best first.
        reranked: whether the cross-encoder ordered them.
        reason: why, or why not.
        warning: what failed, None if nothing did.
    """

    candidates: Sequence[SearchResult]
    reranked: bool
    reason: str
    warning: str | None = None


def rerank(
    query: str,
    candidates: Sequence[SearchResult],
    mode: RerankMode,
    reranker: Callable[[], ScoresPassages | None],
    certainty: Certainty,
) -> Reranking:
    """Order `candidates` by the cross-encoder if `mode` and, for `auto`, `certainty` say so.

    A reranker that is missing or fails leaves the first stage's order, with a warning.

    Args:
        query: as it was typed.
        candidates: best first.
        mode: auto, always or never.
        reranker: loads it; asked only when it is needed.
        certainty: decides for `auto`.
    """
    if mode == "never":
        return Reranking(candidates, False, "not asked for")
    reason = "asked for"
    if mode == "auto":
        decision = certainty.decide(candidates)
        reason = decision.reason
        if not decision.rerank:
            return Reranking(candidates, False, reason)
    if not candidates:
        return Reranking(candidates, False, "nothing to rerank")
    try:
        model = reranker()
        scores = model.score(query, [candidate.text for candidate in candidates]) if model is not None else None
    except BgePipelineError as error:
        return _unranked(candidates, f"the reranker failed: {error.message}")
    if scores is None:
        return _unranked(candidates, "no reranker could be loaded; the log says which were tried")
    scored = [
        replace(candidate, score=float(score), rerank_score=float(score))
        for candidate, score in zip(candidates, scores, strict=True)
    ]
    return Reranking(sorted(scored, key=lambda candidate: -candidate.score), True, reason)


def _unranked(candidates: Sequence[SearchResult], problem: str) -> Reranking:
    return Reranking(candidates, False, problem, f"{problem}; results are in the order of the first stage")
