"""EMBEDDING_PROVIDER=openai against a server of the test's own: batches, order, rate limits, errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bge_pipeline import EmbeddingGenerator
from bge_pipeline.compat import embeddings_endpoint
from bge_pipeline.errors import (
    BgePipelineError,
    ConfigurationError,
    EmbeddingSpaceMismatch,
    EncodingError,
    ModelUnavailable,
)
from bge_pipeline.settings import settings_from_env

KEY = "sk-secret"


def vector(content: str) -> list[float]:
    return [float(len(content)), 0.5, -0.5]


@dataclass
class Server:
    """Answers the requests in turn with what `script` says, and then properly."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    script: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)

    @property
    def batches(self) -> list[int]:
        return [len(request["input"]) for request in self.requests]

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if self.script:
            return self.script.pop(0)
        found = [{"index": n, "embedding": vector(content)} for n, content in enumerate(request["input"])]
        return 200, {}, {"data": found[::-1]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(request)
            served.headers.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
            status, headers, answer = served.answer(request)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.url = f"http://127.0.0.1:{http_server.server_port}/v1"
        for name, value in {
            "EMBEDDING_PROVIDER": "openai",
            "EMBEDDING_MODEL": "some-model",
            "EMBEDDING_DIMENSIONS": "3",
            "EMBEDDING_API_URL": served.url,
            "EMBEDDING_API_KEY": KEY,
            "EMBEDDING_BATCH_SIZE": "2",
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        settings_from_env.cache_clear()
        yield served
        settings_from_env.cache_clear()
        http_server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", slept.append)
    return slept


def error(message: str, **more: str) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def test_texts_go_in_batches_and_vectors_come_back_by_index(server: Server) -> None:
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]

    assert EmbeddingGenerator().generate_embeddings(texts) == [vector(content) for content in texts]

    assert server.batches == [2, 2, 1]
    assert server.requests[0] == {"model": "some-model", "input": ["a", "bb"], "encoding_format": "float"}
    assert server.headers[0]["path"] == "/v1/embeddings"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_one_text_and_none(server: Server) -> None:
    generator = EmbeddingGenerator()

    assert generator.generate_single_embedding("abc") == vector("abc")
    assert generator.generate_embeddings([]) == []
    assert generator.get_embedding_dimension() == 3
    assert (generator.provider, generator.model_name) == ("openai", "some-model")
    assert len(server.requests) == 1


def test_only_models_that_can_choose_are_asked_for_dimensions(server: Server) -> None:
    EmbeddingGenerator(model_name="text-embedding-3-small").generate_embeddings(["a"])

    assert server.requests[0]["dimensions"] == 3


def test_a_server_without_a_key_gets_no_authorization(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDDING_API_KEY")

    EmbeddingGenerator().generate_embeddings(["a"])

    assert "authorization" not in server.headers[0]


def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(server: Server, pauses: list[float]) -> None:
    server.script = [(429, {"Retry-After": "7"}, error("slow down")), (503, {}, b"busy"), (429, {}, b"")]

    assert EmbeddingGenerator().generate_embeddings(["a"]) == [vector("a")]

    assert pauses[0] == 7
    assert len(pauses) == 3
    assert all(0 <= pause <= 30 for pause in pauses[1:])


def test_retry_after_may_be_a_date() -> None:
    assert embeddings_endpoint._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert embeddings_endpoint._retry_after("Wed, 21 Oct 2065 07:28:00 GMT") > 1e8  # type: ignore[operator]
    assert embeddings_endpoint._retry_after("soon") is None


def test_a_lost_connection_and_an_answer_that_is_no_json_are_tried_again(
    server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [(200, {}, b"<html>")]
    answer = server.answer
    calls = iter([ConnectionResetError()])

    def broken_once(request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if (failure := next(calls, None)) is not None:
            raise failure
        return answer(request)

    monkeypatch.setattr(server, "answer", broken_once)
    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)

    assert EmbeddingGenerator().generate_embeddings(["a"]) == [vector("a")]
    assert len(pauses) == 2


REFUSALS: dict[str, tuple[tuple[int, dict[str, str], Any], type[BgePipelineError], str]] = {
    "a wrong key": ((401, {}, error(f"Incorrect API key {KEY}")), ConfigurationError, "EMBEDDING_API_KEY"),
    "an unknown model": ((404, {}, error("no such model")), ConfigurationError, "EMBEDDING_MODEL is not known"),
    "a text it does not take": ((400, {}, error("'$.input' is invalid")), EncodingError, r"\$\.input"),
    "no quota left": ((429, {}, error("no quota", code="insufficient_quota")), ModelUnavailable, "no quota"),
    "a pause of an hour": ((429, {"Retry-After": "3600"}, error("later")), ModelUnavailable, "3,600 seconds"),
    "a redirect": ((307, {"Location": "http://127.0.0.1:1/"}, b""), EncodingError, "307"),
    "vectors of other dimensions": (
        (200, {}, {"data": [{"index": 0, "embedding": [1.0] * 5}]}),
        EmbeddingSpaceMismatch,
        "EMBEDDING_DIMENSIONS=3, .* 5 dimensions",
    ),
    "too few vectors": ((200, {}, {"data": []}), EncodingError, "expected 1 vectors"),
    "another shape": ((200, {}, {"embeddings": [[1, 2, 3]]}), EncodingError, "expected data with index"),
    "numbers that are none": (
        (200, {}, b'{"data": [{"index": 0, "embedding": [NaN, 1, 2]}]}'),
        EncodingError,
        "finite",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_no_retry_would_mend_is_raised_at_once_without_the_key(
    refusal: str, server: Server, pauses: list[float]
) -> None:
    answer, kind, message = REFUSALS[refusal]
    server.script = [answer]

    with pytest.raises(kind, match=message) as caught:
        EmbeddingGenerator().generate_embeddings(["a"])

    assert KEY not in str(caught.value)
    assert pauses == []
    assert len(server.requests) == 1


def test_a_server_that_stays_down_is_given_up_after_six_attempts(server: Server, pauses: list[float]) -> None:
    server.script = [(500, {}, b"broken")] * 9

    with pytest.raises(ModelUnavailable, match="6 attempts: HTTP 500, broken"):
        EmbeddingGenerator().generate_embeddings(["a"])

    assert len(pauses) == 5


def test_a_batch_that_is_too_large_is_halved_until_it_fits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_BATCH_SIZE", "8")
    answer = server.answer

    def at_most_two(request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        return answer(request) if len(request["input"]) <= 2 else (413, {}, error("too many tokens"))

    monkeypatch.setattr(server, "answer", at_most_two)
    texts = [str(number) * (number + 1) for number in range(5)]

    assert EmbeddingGenerator().generate_embeddings(texts) == [vector(content) for content in texts]
    assert server.batches == [5, 2, 3, 1, 2]


def test_a_single_text_that_is_too_large_is_an_error(server: Server) -> None:
    server.script = [(413, {}, error("too long"))]

    with pytest.raises(EncodingError, match="refuses a text of 4 characters"):
        EmbeddingGenerator().generate_embeddings(["long"])


@pytest.mark.parametrize(
    ("unset", "url", "message"),
    [
        ("EMBEDDING_MODEL", "http://127.0.0.1:1", "EMBEDDING_MODEL"),
        ("EMBEDDING_API_KEY", "https://api.openai.com/v1", "EMBEDDING_API_KEY"),
        ("NO_PROXY", "file:///etc/passwd", "EMBEDDING_API_URL"),
    ],
)
def test_what_is_missing_is_named_before_the_first_request(
    unset: str, url: str, message: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_API_URL", url)
    monkeypatch.delenv(unset)

    with pytest.raises(ConfigurationError, match=message):
        EmbeddingGenerator()


def test_threads_may_share_a_generator(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    generator = EmbeddingGenerator()
    texts = [[str(number) * (number + 1)] * 3 for number in range(8)]
    embed: Callable[[list[str]], list[list[float]]] = generator.generate_embeddings

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, texts))

    assert found == [[vector(content) for content in three] for three in texts]
