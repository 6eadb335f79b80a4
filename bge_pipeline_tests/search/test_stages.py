"""The stages together: reranking and query expansion within a search, and what they bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.questions import judge
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.search_quality import measure_adaptive_reranking, measure_search
from bge_pipeline.search import Retriever
from bge_pipeline.search.certainty import Certainty
from bge_pipeline.search.expansion import ExpansionContext, FeedbackExpansion
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector

QUERY = "remove an item from a list"


class Counting:
    """Scores by the length of the passage and remembers how much it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def score(self, _query: str, docs: Sequence[str]) -> np.ndarray:
        self.seen.append(len(docs))
        return np.array([len(doc) for doc in docs], np.float32)


class Failing:
    def expand(self, context: ExpansionContext) -> np.ndarray:
        raise ModelUnavailable(f"nobody answers for {context.query!r}")


@pytest.fixture
def judged(database: Database) -> JudgedQueries:
    judged = judge(execute(database, "SELECT id, video_id, text FROM segments"))
    few = list(judged.queries)[:12]
    return JudgedQueries({q: judged.queries[q] for q in few}, {q: judged.qrels[q] for q in few})


def make(database: Database, settings: Settings, encoder: HashingEncoder, **options: object) -> Retriever:
    return Retriever(database, settings, query_encoder=encoder, **options)


def test_the_reranker_sees_rerank_top_k_candidates_and_return_top_k_come_back(
    database: Database, make_settings: Callable[..., Settings], old_encoder: HashingEncoder
) -> None:
    reranker = Counting()
    retriever = make(database, make_settings(rerank_top_k=40, return_top_k=7), old_encoder, reranker=reranker)
    for mode in ("dense", "lexical", "hybrid"):
        response = retriever.search(QUERY, mode=mode, rerank="always")
        assert response.reranked
        lengths = [len(result.text) for result in response.results]
        assert len(lengths) == 7
        assert lengths == sorted(lengths, reverse=True)
        assert "reranked: asked for" in response.explanation
        assert response.seconds.rerank > 0
    assert reranker.seen == [40, 40, 40]


def test_auto_asks_the_bounds(database: Database, settings: Settings, old_encoder: HashingEncoder) -> None:
    for margin, reranks in ((0.0, False), (1.0, True)):
        certainty = Certainty(margin=margin, margin_with_agreement=margin)
        retriever = make(database, settings, old_encoder, reranker=Counting(), certainty=certainty)
        response = retriever.search(QUERY, mode="hybrid", rerank="auto")
        assert response.reranked is reranks
        assert "the first stage is" in response.explanation


def test_with_a_reranker_every_search_is_reranked_unless_the_setting_or_the_search_says_auto(
    database: Database, make_settings: Callable[..., Settings], old_encoder: HashingEncoder
) -> None:
    always_sure = Certainty(margin=0.0)
    for said, reranks in (({}, True), ({"rerank": "auto"}, False)):
        reranker = Counting()
        settings = make_settings(**said)
        retriever = make(database, settings, old_encoder, reranker=reranker, certainty=always_sure)
        assert retriever.search(QUERY).reranked is reranks
        assert retriever.search(QUERY, rerank="always").reranked
        assert not retriever.search(QUERY, rerank="auto").reranked
        assert reranker.seen == [200] * (1 + reranks)


def test_a_reranker_that_does_not_load_leaves_the_order_and_is_reported(
    database: Database,
    make_settings: Callable[..., Settings],
    old_encoder: HashingEncoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("bge_pipeline.embedding.service.load_reranker", lambda *_: None)
    settings = make_settings(enable_reranker=True)
    retriever = Retriever(database, settings, EmbeddingsService(old_encoder, settings))
    response = retriever.search(QUERY, rerank="always")
    assert [r.id for r in response.results] == [r.id for r in retriever.search(QUERY, rerank="never").results]
    assert not response.reranked
    assert response.explanation.startswith("warning: no reranker could be loaded")
    assert response.warnings[0] in caplog.text


def test_feedback_changes_the_vector_and_costs_a_second_search(
    database: Database, settings: Settings, old_encoder: HashingEncoder, statements
) -> None:
    plain = make(database, settings, old_encoder)
    fed_back = make(database, settings, old_encoder, expansion=FeedbackExpansion(passages=5, weight=2.0))
    fed_back.check()
    with statements() as sent:
        found = fed_back.search(QUERY).results
    assert len(sent) == 2
    assert [r.id for r in found] != [r.id for r in plain.search(QUERY).results]
    assert found[0].score > plain.search(QUERY).results[0].score


def test_an_expansion_that_fails_is_reported_and_the_search_goes_on(
    database: Database, settings: Settings, old_encoder: HashingEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    response = make(database, settings, old_encoder, expansion=Failing()).search(QUERY)
    assert len(response.results) == 20
    assert response.warnings == (f"the query was not expanded: nobody answers for {QUERY!r}",)
    assert response.explanation.startswith("warning: the query was not expanded")
    assert "nobody answers" in caplog.text


def test_the_settings_switch_feedback_on(
    database: Database, make_settings: Callable[..., Settings], old_encoder: HashingEncoder, statements
) -> None:
    retriever = make(database, make_settings(query_expansion="feedback"), old_encoder)
    retriever.check()
    with statements() as sent:
        retriever.search(QUERY, mode="hybrid")
    assert len(sent) == 2


def test_adaptive_reranking_is_measured_against_always_and_never(
    database: Database, settings: Settings, old_encoder: HashingEncoder, judged: JudgedQueries
) -> None:
    reranker = Counting()
    measured = measure_adaptive_reranking(
        make(database, settings, old_encoder, reranker=reranker), judged, mode="hybrid"
    )
    assert (measured.never.reranked_share, measured.always.reranked_share) == (0, 1)
    assert 0 < measured.auto.reranked_share < 1
    assert len(reranker.seen) == len(judged) * (1 + measured.auto.reranked_share)
    assert measured.saved_share < 1
    expected = measured.auto.quality.ndcg - measured.always.quality.ndcg
    assert measured.ndcg_change.mean == pytest.approx(expected)
    assert set(measured.as_metadata()) == {"never", "auto", "always", "saved_share", "ndcg_change"}


def test_progress_is_reported(
    database: Database, settings: Settings, old_encoder: HashingEncoder, judged: JudgedQueries
) -> None:
    seen: list[int] = []
    measured = measure_search(make(database, settings, old_encoder), judged, on_progress=seen.append)
    assert seen == list(range(1, len(judged) + 1))
    assert 0 < measured.quality.ndcg <= 1
    assert measured.p50_ms <= measured.p95_ms
