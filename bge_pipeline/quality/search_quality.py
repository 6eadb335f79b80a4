"""What a way of searching brings and costs on judged queries; above all, what adaptive reranking saves and loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bge_pipeline.database.ids import id_as_text
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.metrics import Difference, RankingQuality, paired_difference, ranking_quality
from bge_pipeline.quality.time_limit import deadline_in, in_time
from bge_pipeline.search.results import RerankMode, SearchMode, SearchResponse
from bge_pipeline.search.retriever import Retriever


@dataclass(frozen=True)
class MeasuredSearch:
    """Judged queries, searched in one way.

    Attributes:
        mode: how candidates were found.
        rerank: auto, always or never.
        quality: nDCG@k, recall@k and MRR.
        p50_ms, p95_ms: milliseconds of a whole search.
        reranked_share: share of the queries that the cross-encoder saw.
        rerank_seconds: spent in it, over all queries.
    """

    mode: SearchMode
    rerank: RerankMode
    quality: RankingQuality
    p50_ms: float
    p95_ms: float
    reranked_share: float
    rerank_seconds: float

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"quality": self.quality.as_metadata()}


@dataclass(frozen=True)
class AdaptiveReranking:
    """What is saved and lost when only unsure queries are reranked.

    Attributes:
        never, auto, always: the three ways.
        saved_share: share of the time in the cross-encoder that `auto` saves against `always`.
        ndcg_change: nDCG@k of `auto` minus that of `always`, query by query.
    """

    never: MeasuredSearch
    auto: MeasuredSearch
    always: MeasuredSearch
    saved_share: float
    ndcg_change: Difference

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "never": self.never.as_metadata(),
            "auto": self.auto.as_metadata(),
            "always": self.always.as_metadata(),
            "saved_share": self.saved_share,
            "ndcg_change": self.ndcg_change.as_metadata(),
        }


def measure_search(
    retriever: Retriever,
    judged: JudgedQueries,
    *,
    mode: SearchMode = "dense",
    rerank: RerankMode = "never",
    k: int = 20,
    on_progress: Callable[[int], None] | None = None,
    seconds: float | None = None,
) -> MeasuredSearch:
    """Search every judged query once, or as many of them as `seconds` are enough for.

    Args:
        retriever: what to measure; it is used once before the clock starts.
        judged: queries and what answers them.
        mode: dense, lexical or hybrid.
        rerank: auto, always or never.
        k: results looked at.
        on_progress: told how many queries are done.
        seconds: as for `ask_each`.
    """
    responses = list(
        ask_each(
            retriever,
            list(judged.queries.values()),
            mode=mode,
            rerank=rerank,
            k=k,
            on_progress=on_progress,
            seconds=seconds,
        )
    )
    judged = judged.first(len(responses))
    rankings = {
        query_id: [id_as_text(result.id) for result in response.results]
        for query_id, response in zip(judged.queries, responses, strict=True)
    }
    p50, p95 = p50_and_p95(responses)
    return MeasuredSearch(
        mode,
        rerank,
        ranking_quality(judged.qrels, rankings, k),
        p50,
        p95,
        sum(response.reranked for response in responses) / len(judged),
        sum(response.seconds.rerank for response in responses),
    )


def ask_each(
    retriever: Retriever,
    queries: Sequence[str],
    *,
    mode: SearchMode = "dense",
    rerank: RerankMode = "never",
    k: int = 20,
    on_progress: Callable[[int], None] | None = None,
    seconds: float | None = None,
) -> Iterator[SearchResponse]:
    """The answer to each query, asked one after the other of a retriever that has warmed up.

    Arguments are those of `measure_search`.

    Args:
        seconds: after so many, and one query, no more is asked: without an index each search reads the whole table.
    """
    deadline = deadline_in(seconds)
    retriever.search(queries[0], mode=mode, rerank="never", top_k=k)
    for done, query in enumerate(in_time(queries, deadline), start=1):
        yield retriever.search(query, mode=mode, rerank=rerank, top_k=k)
        if on_progress is not None:
            on_progress(done)


def p50_and_p95(responses: Sequence[SearchResponse]) -> tuple[float, float]:
    """Median and 95th percentile of a whole search, in milliseconds."""
    p50, p95 = np.quantile([response.seconds.total for response in responses], [0.5, 0.95]) * 1e3
    return float(p50), float(p95)


def measure_adaptive_reranking(
    retriever: Retriever,
    judged: JudgedQueries,
    *,
    mode: SearchMode = "hybrid",
    k: int = 20,
    on_progress: Callable[[int], None] | None = None,
) -> AdaptiveReranking:
    """Compare `rerank="auto"` with `always` and `never`; two queries or more. The retriever needs a reranker.

    Arguments are those of `measure_search`.
    """
    never = measure_search(retriever, judged, mode=mode, rerank="never", k=k)
    auto = measure_search(retriever, judged, mode=mode, rerank="auto", k=k, on_progress=on_progress)
    always = measure_search(retriever, judged, mode=mode, rerank="always", k=k, on_progress=on_progress)
    saved = 1 - auto.rerank_seconds / always.rerank_seconds if always.rerank_seconds else 0.0
    change = paired_difference(auto.quality.ndcg_by_query, always.quality.ndcg_by_query)
    return AdaptiveReranking(never, auto, always, saved, change)
