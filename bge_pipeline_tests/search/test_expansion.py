"""Moving a query's vector, and the endpoint that imagines answers."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pydantic import SecretStr

from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline.search.chat import PassageWriter
from bge_pipeline.search.expansion import (
    ExpansionContext,
    FeedbackExpansion,
    HypotheticalPassage,
    expansion_from_settings,
)
from bge_pipeline.settings import load_settings

X, Y = np.eye(2, dtype=np.float32)


class Endpoint:
    """An OpenAI-compatible server of the test's own."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], dict]] = []
        self.status, self.body, self.delay = 200, json.dumps(completion("a passage")), threading.Event()
        self.delay.set()
        self.location: str | None = None
        self.breaks = False
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                endpoint.requests.append((self.path, dict(self.headers), json.loads(self.rfile.read(length))))
                endpoint.delay.wait(5)
                if endpoint.breaks:
                    self.wfile.write(b"no HTTP at all\r\n")
                    return
                self.send_response(endpoint.status)
                if endpoint.location is not None:
                    self.send_header("Location", endpoint.location)
                self.end_headers()
                self.wfile.write(endpoint.body.encode())

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def completion(text: object) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.delay.set()
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


def context(nearest: np.ndarray) -> ExpansionContext:
    return ExpansionContext("q", X, lambda _vector, k: nearest[:k], lambda texts: np.tile(Y, (len(texts), 1)))


def test_feedback_moves_the_query_towards_its_first_results() -> None:
    moved = FeedbackExpansion(passages=2, weight=1.0).expand(context(np.array([Y, Y, X])))
    assert moved == pytest.approx([2**-0.5, 2**-0.5])
    assert FeedbackExpansion(weight=0.0).expand(context(np.array([Y]))) == pytest.approx(X)


def test_feedback_from_an_empty_table_is_the_query_itself() -> None:
    assert FeedbackExpansion().expand(context(np.empty((0, 2), np.float32))) == pytest.approx(X)


def test_an_imagined_passage_pulls_as_much_as_the_query() -> None:
    assert HypotheticalPassage(lambda query: f"about {query}").expand(context(np.empty((0, 2)))) == pytest.approx(
        [2**-0.5, 2**-0.5]
    )


def test_the_endpoint_is_asked_as_openai_is(endpoint: Endpoint) -> None:
    assert PassageWriter(endpoint.url + "/", "some-model", "secret")("why?") == "a passage"
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["model"] == "some-model"
    assert body["messages"][-1] == {"role": "user", "content": "why?"}


def test_half_a_character_at_the_end_of_an_answer_is_left_out(endpoint: Endpoint) -> None:
    endpoint.body = json.dumps(completion("a dog \ud83d"))
    assert PassageWriter(endpoint.url, "m")("why?") == "a dog ?"


def test_without_a_key_none_is_sent(endpoint: Endpoint) -> None:
    PassageWriter(endpoint.url, "m")("why?")
    assert "Authorization" not in endpoint.requests[0][1]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, "oops", "answered 500"),
        (401, "{}", "answered 401"),
        (200, "not json", "chat/completions"),
        (200, "{}", "expected a chat completion"),
        (200, "[]", "expected a chat completion"),
        (200, "[" * 100_000, "chat/completions"),
        (200, json.dumps(completion(None)), "expected a chat completion"),
        (200, json.dumps(completion("  ")), "expected a chat completion"),
    ],
)
def test_an_answer_that_is_none_is_an_error_without_the_key(
    endpoint: Endpoint, status: int, body: str, says: str
) -> None:
    endpoint.status, endpoint.body = status, body
    with pytest.raises(ModelUnavailable, match=says) as caught:
        PassageWriter(endpoint.url, "m", "secret")("why?")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_no_answer_and_carries_neither_query_nor_key_elsewhere(endpoint: Endpoint, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        endpoint.status, endpoint.location = status, f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        with pytest.raises(ModelUnavailable, match=f"answered {status}"):
            PassageWriter(endpoint.url, "m", "secret")("why?")
        elsewhere.settimeout(0.1)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


@pytest.mark.parametrize(
    "body", ['{"said": "secret"}', "secret is no JSON", json.dumps({"said": "x" * 186 + "secret"})]
)
def test_a_key_that_the_server_repeats_is_taken_out(endpoint: Endpoint, body: str) -> None:
    endpoint.body = body
    with pytest.raises(ModelUnavailable) as caught:
        PassageWriter(endpoint.url, "m", "secret")("why?")
    assert "secr" not in str(caught.value)


def test_silence_ends_after_the_timeout(endpoint: Endpoint) -> None:
    endpoint.delay.clear()
    with pytest.raises(ModelUnavailable, match="timed out"):
        PassageWriter(endpoint.url, "m", timeout_seconds=0.1)("why?")


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(ModelUnavailable, match="refused"):
        PassageWriter("http://127.0.0.1:9", "m")("why?")


def test_an_answer_that_is_no_http_is_an_endpoint_that_is_not_available(endpoint: Endpoint) -> None:
    endpoint.breaks = True
    with pytest.raises(ModelUnavailable, match="no HTTP at all"):
        PassageWriter(endpoint.url, "m")("why?")


def test_only_http_is_spoken_and_the_key_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="QUERY_EXPANSION_URL"):
        PassageWriter("file:///etc/passwd", "m")
    assert "secret" not in repr(PassageWriter("https://x", "m", "secret"))


def test_the_settings_choose_the_expansion_and_choose_none_by_default() -> None:
    assert expansion_from_settings(load_settings()) is None
    assert expansion_from_settings(load_settings(query_expansion="feedback")) == FeedbackExpansion()
    chat = expansion_from_settings(
        load_settings(query_expansion="chat", query_expansion_url="http://h/v1", query_expansion_key=SecretStr("k"))
    )
    assert chat == HypotheticalPassage(PassageWriter("http://h/v1", "gpt-4o-mini", "k"))
