"""Putting candidates in the cross-encoder's order, or leaving them and saying why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bge_pipeline.embedding.reranker import ScoresPassages, try_to_score
from bge_pipeline.search.certainty import Certainty
from bge_pipeline.search.results import RerankMode, SearchResult


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
    scores = try_to_score(reranker, query, [candidate.text for candidate in candidates])
    if scores.values is None:
        return Reranking(
            candidates, False, scores.problem, f"{scores.problem}; results are in the order of the first stage"
        )
    scored = [
        replace(candidate, score=float(score), rerank_score=float(score))
        for candidate, score in zip(candidates, scores.values, strict=True)
    ]
    return Reranking(sorted(scored, key=lambda candidate: -candidate.score), True, reason)
