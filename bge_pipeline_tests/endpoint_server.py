"""A small OpenAI-compatible server that embeds properly, and misbehaves where a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bge_pipeline.embedding.hashing import HashingEncoder

Reply = tuple[int, dict[str, str], Any]
"""Status, headers, and the body: bytes as they are, anything else as JSON. None as status drops the connection."""
DROPPED: tuple[None, dict[str, str], bytes] = (None, {}, b"")
CUT_SHORT: Reply = (200, {}, b'{"data": [{"index": 0, "embed')
KEY = "sk-secret-7f3a"
LENGTH = 3
"""What its vectors have in place of 1, as the protocol does not promise unit length."""


def error(message: str, **more: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, **more}}


@dataclass
class EndpointServer:
    """Makes of each text what HashingEncoder makes of it, in reversed order, unless `script` or `rule` says otherwise.

    Attributes:
        script: replies to the next requests, in turn; None among them: a proper one.
        rule: asked for a reply to every request that the script leaves; None: a proper one.
        seconds: that it takes for every reply.
        at_once: most requests that were under way together.
    """

    encoder: HashingEncoder
    url: str = ""
    script: list[Any] = field(default_factory=list)
    rule: Callable[[dict[str, Any]], Any] = lambda _: None
    seconds: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self) -> dict[str, str]:
        """The variables by which the server is the encoder."""
        return {
            "EMBEDDING_PROVIDER": "openai",
            "EMBEDDING_MODEL": "some-model",
            "EMBEDDING_API_URL": self.url,
            "EMBEDDING_API_KEY": KEY,
        }

    @property
    def batches(self) -> list[int]:
        """Texts of each request."""
        return [len(request["input"]) for request in self.requests]

    @property
    def texts(self) -> list[str]:
        """All texts of all requests."""
        return [text for request in self.requests for text in request["input"]]

    def proper(self, request: dict[str, Any]) -> dict[str, Any]:
        """A proper answer: a token a word, and vectors by index."""
        texts = request["input"]
        vectors = self.encoder.encode(self.encoder.tokenize(texts)) * LENGTH
        found = [{"index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)]
        words = sum(len(text.split()) for text in texts)
        return {"data": found[::-1], "usage": {"prompt_tokens": words, "total_tokens": words}}

    def reply(self, request: dict[str, Any], headers: dict[str, str]) -> Any:
        """What to send."""
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)
            told = self.script.pop(0) if self.script else None
        time.sleep(self.seconds)
        told = told or self.rule(request) or (200, {}, self.proper(request))
        with self.lock:
            self.under_way -= 1
        return told


@contextmanager
def serving(dimensions: int = 384) -> Iterator[EndpointServer]:
    """The server, while the block runs."""
    served = EndpointServer(HashingEncoder(dimensions))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}
            status, more, answer = served.reply(request, headers)
            if status is None:
                self.close_connection = True
                self.connection.close()
                return
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True  # a slow reply outlives a client that has given up

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.url = f"http://127.0.0.1:{http_server.server_port}/v1"
        try:
            yield served
        finally:
            http_server.shutdown()
            thread.join()
