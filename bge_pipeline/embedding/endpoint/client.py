"""One request at a time to `POST {url}/embeddings`, tried again while that can help."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import httpx
import numpy as np
from numpy.typing import NDArray
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.embedding.endpoint.answers import require_model, tokens_of, vectors_of
from bge_pipeline.embedding.endpoint.limits import RateLimits
from bge_pipeline.embedding.endpoint.refusals import Transient, explain
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
"""Between two looks, while a request waits for its turn, at whether anybody still waits for it."""
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_backoff = wait_random_exponential(multiplier=0.5, max=30)


@dataclass(frozen=True)
class Answer:
    """Vectors float32 (n, dimensions) as the server made them, and the tokens that it says it has read, if it says so."""

    vectors: NDArray[np.float32]
    tokens: int | None


class EndpointClient:
    """Asks one endpoint. Thread-safe; keeps as many connections open as requests are under way.

    Args:
        address: which model, where.
        limits: when a request may go.
        connections: most requests at once.
        timeout_seconds: longest wait for a connection, and for an answer.
        max_attempts: of one request.

    Raises:
        ConfigurationError: the environment names a proxy or certificates that cannot be used.
    """

    def __init__(
        self, address: Address, limits: RateLimits, *, connections: int, timeout_seconds: float, max_attempts: int
    ) -> None:
        self._address = address
        self._limits = limits
        self._max_attempts = max_attempts
        self._closed = threading.Event()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._sockets_lock = threading.Lock()
        key = address.key
        try:
            self._http = httpx.Client(
                headers={"User-Agent": "bge-pipeline"}
                | ({"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}),
                timeout=timeout_seconds,
                limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                follow_redirects=False,  # a redirect would carry the texts, and may carry the key, to another host
            )
        except OSError as error:
            path = os.environ.get("SSL_CERT_FILE")
            raise ConfigurationError(f"SSL_CERT_FILE={path}: expected certificates there: {error}") from error
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(  # the error may repeat a part of the value
                f"{_proxy_variables()}: expected a proxy that can be used here",
                next_step="correct it, or except the endpoint's host in NO_PROXY; a SOCKS proxy needs pip install 'httpx[socks]'",
            ) from error

    def embed(self, texts: Sequence[str], tokens: int, abandoned: threading.Event | None = None) -> Answer:
        """The vectors of the texts, in order.

        Rate limits (429, honouring Retry-After), server errors, lost connections and answers that are no JSON are tried again.

        Args:
            tokens: that the texts are expected to have.
            abandoned: set where nobody waits for the vectors any more; nothing is sent then.

        Raises:
            Refused: the server does not take these texts.
            ModelUnavailable: it cannot be reached, or does not answer as it should, after all attempts.
            ConfigurationError: it does not accept the key, or does not know the model.
            EmbeddingSpaceMismatch: its vectors are of another model, or do not have EMBEDDING_DIMENSIONS dimensions.
            EncodingError: its answer is another than was asked for, the client was closed, or nobody waits for the vectors.
        """

        def sleep(seconds: float) -> None:
            self._sleep(seconds, abandoned)

        retrying = Retrying(
            stop=stop_after_attempt(self._max_attempts),
            wait=_wait,
            retry=retry_if_exception_type(Transient),
            before_sleep=self._note_retry,
            sleep=sleep,
            reraise=True,
        )
        try:
            answer = retrying(self._post, texts, tokens, sleep)
        except Transient as error:
            raise ModelUnavailable(
                f"{self._address.url} did not embed {len(texts)} texts in {self._max_attempts} attempts: {error}",
                next_step="check EMBEDDING_API_URL and the limits of its account, then run the same command again",
            ) from error
        require_model(self._address, answer)
        return Answer(vectors_of(self._address, answer, len(texts)), tokens_of(answer))

    def require_open(self) -> None:
        """Pass a client that is in use.

        Raises:
            EncodingError: it was closed.
        """
        if self._closed.is_set():
            raise EncodingError(f"{self._address.url} was not asked: the encoder was shut down")

    def close(self) -> None:
        """Close the connections; whoever waits for an answer or for another attempt is told at once."""
        self._closed.set()
        with self._sockets_lock:
            for opened in self._sockets:
                _end(opened)
        self._http.close()

    def _post(self, texts: Sequence[str], tokens: int, sleep: Callable[[float], None]) -> Any:
        sleep(self._limits.seconds_to_wait(tokens))
        while self._limits.is_held():
            sleep(self._limits.seconds_to_wait(tokens))
        body: dict[str, Any] = {"model": self._address.model, "input": list(texts), "encoding_format": "float"}
        if self._address.asks_dimensions:
            body["dimensions"] = self._address.dimensions
        try:
            response = self._http.post(
                f"{self._address.url}/embeddings", json=body, extensions={"trace": self._note_connection}
            )
        except httpx.RequestError as error:
            raise Transient(self._address.without_key(str(error) or type(error).__name__)) from error
        except RuntimeError:
            self.require_open()
            raise
        except UnicodeEncodeError as error:
            raise EncodingError(f"expected texts that can be written as UTF-8: {error.reason}") from error
        if response.status_code != httpx.codes.OK:
            raise explain(self._address, response, texts)
        try:
            return response.json()
        except ValueError as error:
            raise Transient(f"its answer is no JSON: {error}") from error

    def _note_connection(self, event: str, info: dict[str, Any]) -> None:
        """Keep the socket, by which alone a wait for its answer can be ended: closing it wakes nobody."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        opened = info["return_value"].get_extra_info("socket")
        with self._sockets_lock:
            self._sockets.add(opened)
        if self._closed.is_set():
            _end(opened)

    def _sleep(self, seconds: float, abandoned: threading.Event | None = None) -> None:
        until = time.monotonic() + seconds
        is_over = self._closed.is_set if abandoned is None else lambda: self._closed.is_set() or abandoned.is_set()
        while not is_over() and (left := until - time.monotonic()) > 0:
            self._closed.wait(min(left, _LOOK_SECONDS))
        self.require_open()
        if abandoned is not None and abandoned.is_set():
            raise EncodingError(f"{self._address.url} was not asked: nobody waits for these vectors any more")

    def _note_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        if isinstance(error, Transient) and error.is_limit:
            self._limits.hold(seconds)
        logger.warning(
            "attempt %d of %d: %s; again in %.1f s", state.attempt_number, self._max_attempts, error, seconds
        )


def _wait(state: RetryCallState) -> float:
    asked = getattr(state.outcome.exception(), "wait_seconds", None) if state.outcome else None
    # A server that asks for no pause, or for one that has passed by this clock, is not hurried all the same.
    return max(asked or 0.0, _backoff(state))


def _end(opened: socket.socket) -> None:
    with suppress(OSError):  # the other side has closed it, or TLS goes on in another one
        # TLS's own shutdown would let a request that is just being written go on without it.
        socket.socket.shutdown(opened, socket.SHUT_RDWR)


def _proxy_variables() -> str:
    """Those that are set, without their values, which may hold a password; ALL_PROXY where it is the system that names one."""
    return ", ".join(name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())) or _PROXIES[0]
