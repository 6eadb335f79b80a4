"""Whether the first stage is sure enough of its order to spare the cross-encoder. Decides; others act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bge_pipeline.search.results import SearchResult


@dataclass(frozen=True)
class RerankDecision:
    """Whether to rerank, why, and what that was judged by.

    Attributes:
        rerank: the decision.
        reason: for people.
        margin: of the first stage, None if there was nothing to measure.
        lists_agree: whether words and vectors put the same row first; None for a single list.
    """

    rerank: bool
    reason: str
    margin: float | None = None
    lists_agree: bool | None = None


@dataclass(frozen=True)
class Certainty:
    """Reranks unless the nearest row stands out, or stands out a little and is among the best by words too.

    The margin is 1 - d(1) / d(k): by how much the nearest row is nearer than the k-th. It is free of the scale of
    distances, which differs between models. On the demo's questions it predicts the first stage's nDCG@20 (Spearman's
    rho 0.53), and the defaults part off those whose nDCG@20 is 1.8 times that of the others; docs/search.md.

    Attributes:
        margin: from here on the nearest row alone suffices.
        margin_with_agreement: from here on it suffices if the words agree.
        depth: k, and the number of rows over which the lists are compared.
        agreement_depth: the nearest row must be among so many by words.
    """

    margin: float = 0.4
    margin_with_agreement: float = 0.3
    depth: int = 20
    agreement_depth: int = 10

    def decide(self, candidates: Sequence[SearchResult]) -> RerankDecision:
        """The decision for candidates in any order.

        Without dense ranks (lexical search) there is no margin, and a single candidate has no order to improve.
        """
        if len(candidates) < 2:
            return RerankDecision(False, "fewer than two candidates")
        nearest = {c.dense_rank: c for c in candidates if c.dense_rank is not None and c.dense_rank <= self.depth}
        first, last = nearest.get(1), nearest[max(nearest)] if nearest else None
        if first is None or last is None or first is last or not last.distance or last.distance < 0:
            return RerankDecision(True, "the first stage has no distances to judge by")
        assert first.distance is not None
        margin = 1 - first.distance / last.distance
        agree = None
        if any(c.lexical_rank is not None for c in candidates):
            agree = first.lexical_rank is not None and first.lexical_rank <= self.agreement_depth
        sure = margin >= self.margin or (agree is True and margin >= self.margin_with_agreement)
        words = {None: "no words compared", True: "the words agree", False: "the words disagree"}[agree]
        return RerankDecision(
            not sure, f"the first stage is {'sure' if sure else 'unsure'}: margin {margin:.2f}, {words}", margin, agree
        )
