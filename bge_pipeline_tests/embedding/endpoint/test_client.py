"""What an endpoint may do wrong: what is tried again, what is not, and where its key never appears."""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bge_pipeline.embedding.endpoint import client
from bge_pipeline.embedding.endpoint.refusals import retry_after
from bge_pipeline.errors import (
    BgePipelineError,
    ConfigurationError,
    EmbeddingSpaceMismatch,
    EncodingError,
    ModelUnavailable,
)
from bge_pipeline_tests.embedding.endpoint.conftest import MakeEncoder
from bge_pipeline_tests.endpoint_server import CUT_SHORT, DROPPED, KEY, EndpointServer, error


def embed(make_encoder: MakeEncoder, **settings: Any) -> Any:
    encoder = make_encoder(**settings)
    return encoder.encode(encoder.tokenize(["a word"]))


def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(
    server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float]
) -> None:
    server.script = [(429, {"Retry-After": "7"}, error("slow down")), (503, {}, b"busy"), (500, {}, b"")]

    assert embed(make_encoder).shape == (1, 8)

    assert len(server.requests) == 4
    assert pauses[0] == 7
    assert all(0 <= pause <= 30 for pause in pauses[2:])


def test_a_server_that_asks_for_no_pause_is_not_hurried(
    server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_backoff", lambda state: 2.0**state.attempt_number)
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.script = [(429, {"Retry-After": "0"}, error("slow down")), (503, {"Retry-After": past}, b"busy")]

    assert embed(make_encoder).shape == (1, 8)

    assert pauses[0] == 2
    assert 4 in pauses


def test_a_rate_limit_holds_the_other_requests_too(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(embedding_concurrency=1)
    server.script = [(429, {"Retry-After": "0.3"}, error("slow down"))]
    encoder.encode(encoder.tokenize(["a"]))
    encoder._client._limits.hold(60)
    assert 59 < make_encoder()._client._limits.seconds_to_wait(1) <= 60


def test_a_rate_limit_holds_a_request_that_has_its_place_already(
    server: EndpointServer, make_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = make_encoder(embedding_requests_per_minute=60)._client
    asked.embed(["a"], 1)
    sleep, is_asleep = asked._sleep, threading.Event()

    def told(seconds: float, *abandoned: object) -> None:
        if seconds > 0:
            is_asleep.set()
        sleep(seconds, *abandoned)

    monkeypatch.setattr(asked, "_sleep", told)
    with ThreadPoolExecutor(1) as pool:
        has_its_place = pool.submit(asked.embed, ["b"], 1)
        assert is_asleep.wait(30)
        asked._limits.hold(2.5)
        held = time.monotonic()
        has_its_place.result(timeout=30)
    assert time.monotonic() - held >= 2.4
    assert server.texts == ["a", "b"]


@pytest.mark.parametrize(
    "broken", [DROPPED, CUT_SHORT, (200, {}, b"<html>"), (200, {"Content-Encoding": "gzip"}, b"no")]
)
def test_a_lost_connection_and_an_answer_that_is_no_json_are_tried_again(
    broken: Any, server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float]
) -> None:
    server.script = [broken, broken]
    np.testing.assert_allclose(
        embed(make_encoder), server.encoder.encode(server.encoder.tokenize(["a word"])), atol=1e-6
    )
    assert (len(server.requests), len(pauses)) == (3, 2)


def test_a_server_that_is_too_slow_is_asked_again_and_given_up(
    server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float]
) -> None:
    server.seconds = 1
    with pytest.raises(ModelUnavailable, match=r"2 attempts: .*timed out"):
        embed(make_encoder, embedding_timeout_seconds=0.1, embedding_max_attempts=2)
    assert len(server.requests) == 2


def test_a_text_that_cannot_be_sent_is_not_the_servers_fault(
    server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float]
) -> None:
    encoder = make_encoder()
    with pytest.raises(EncodingError, match="expected texts that can be written as UTF-8: surrogates not allowed"):
        encoder.encode(encoder.tokenize(["half an emoji: \ud83d"]))
    assert (server.requests, pauses) == ([], [])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", f"gopher://me:{KEY}@127.0.0.1"),
        ("https_proxy", f"http://me:{KEY}@127.0.0.1:port"),
        ("https_proxy", f"http://me:{KEY}/and@127.0.0.1:1"),
        ("SSL_CERT_FILE", "/missing/certificates.pem"),
    ],
)
def test_a_proxy_or_certificates_that_cannot_be_used_are_named(
    variable: str, value: str, make_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable.upper()) as refused:
        make_encoder()
    assert KEY not in str(refused.value)


def test_a_socks_proxy_without_its_package_is_a_setting_to_correct(
    make_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ConfigurationError, match=r"(?s)ALL_PROXY: .*httpx\[socks\]"):
        make_encoder()


def test_a_server_that_is_not_there_is_given_up(make_encoder: MakeEncoder, pauses: list[float]) -> None:
    with pytest.raises(ModelUnavailable, match=r"127\.0\.0\.1:1/v1 did not embed 1 texts in 6 attempts"):
        embed(make_encoder, embedding_api_url="http://127.0.0.1:1/v1")
    assert len(pauses) == 5


REFUSALS: dict[str, tuple[tuple[int, dict[str, str], Any], type[BgePipelineError], str]] = {
    "a wrong key": ((401, {}, error(f"Incorrect API key {KEY}")), ConfigurationError, "EMBEDDING_API_KEY"),
    "a key without rights": ((403, {}, error("no")), ConfigurationError, "EMBEDDING_API_KEY"),
    "an unknown model": ((404, {}, error("no such model")), ConfigurationError, "EMBEDDING_MODEL is not known"),
    "a text it does not take": ((400, {}, error("'$.input' is invalid")), EncodingError, r"\$\.input"),
    "an error in TEI's form": ((422, {}, {"error": "Batch is empty"}), EncodingError, "422, Batch is empty"),
    "no quota left": ((429, {}, error("no quota", code="insufficient_quota")), ModelUnavailable, "no quota"),
    "a pause of an hour": ((429, {"Retry-After": "3600"}, error("later")), ModelUnavailable, "3,600 seconds"),
    "a redirect": ((307, {"Location": "http://127.0.0.1:1/"}, b""), EncodingError, "307"),
    "vectors of other dimensions": (
        (200, {}, {"data": [{"index": 0, "embedding": [1.0] * 5}]}),
        EmbeddingSpaceMismatch,
        "EMBEDDING_DIMENSIONS=8, .* 5 dimensions",
    ),
    "too few vectors": ((200, {}, {"data": []}), EncodingError, "expected 1 vectors"),
    "too many vectors": (
        (200, {}, {"data": [{"index": n, "embedding": [1.0] * 8} for n in (0, 0)]}),
        EncodingError,
        "expected 1 vectors, got 2",
    ),
    "another shape": ((200, {}, {"embeddings": [[1, 2, 3]]}), EncodingError, "expected data with index"),
    "words for numbers": ((200, {}, {"data": [{"index": 0, "embedding": ["x"] * 8}]}), EncodingError, "of numbers"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_no_retry_would_mend_is_raised_at_once_without_the_key(
    refusal: str, server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float]
) -> None:
    answer, kind, message = REFUSALS[refusal]
    server.script = [answer]

    with pytest.raises(kind, match=message) as caught:
        embed(make_encoder)

    assert KEY not in str(caught.value)
    assert pauses == []
    of_the_text = [request for request in server.requests if "quick brown fox" not in request["input"][0]]
    assert len(of_the_text) == 1


def test_the_key_is_in_no_log_and_no_representation(
    server: EndpointServer, make_encoder: MakeEncoder, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [(500, {}, error(f"key {KEY} upset me"))]
    encoder = make_encoder()
    with caplog.at_level(logging.DEBUG):
        encoder.encode(encoder.tokenize(["a"]))
    assert "[key] upset me" in caplog.text
    for shown in (
        caplog.text,
        repr(encoder._address),
        repr(vars(encoder)),
        repr(vars(encoder._client)),
        str(encoder.space),
    ):
        assert KEY not in shown


def test_retry_after_may_be_a_date() -> None:
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2065 07:28:00 GMT") > 1e8  # type: ignore[operator]
    assert retry_after("soon") is None


@pytest.mark.parametrize(
    ("said", "alias"),
    [
        ("some-model", None),
        ("some-model-2024-05-13", None),
        ("some-model-0613", None),
        ("owner/some-model-001", None),
        ("some-model:latest", None),
        ("text-embedding-ada-002-v2", "text-embedding-ada-002"),
        ("text-embedding-004", "text-embedding-004"),
        ("owner/some-model", None),
        (None, None),
        ("real", "real"),
    ],
)
def test_an_answer_may_name_the_model_in_several_ways(
    said: str | None, alias: str | None, server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.rule = lambda request: (200, {}, server.proper(request) | {"model": said})
    assert embed(make_encoder, embedding_served_model=alias).shape == (1, 8)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("another", "some-model"),
        (f"of {KEY}", "some-model"),
        ("some-model-v2", "some-model"),
        ("intfloat/e5-small-v2", "intfloat/e5-small"),
        ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-en"),
        ("another-2024-05-13", "some-model"),
    ],
)
def test_vectors_of_another_model_are_not_taken(
    said: str, asked: str, server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.rule = lambda request: (200, {}, server.proper(request) | {"model": said})
    with pytest.raises(EmbeddingSpaceMismatch, match=f"asked for vectors of {asked} and says") as refused:
        embed(make_encoder, embedding_model=asked)
    assert "EMBEDDING_SERVED_MODEL=" in str(refused.value)
    assert KEY not in str(refused.value)
