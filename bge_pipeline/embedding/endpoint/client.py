"""One request at a time to `POST {url}/embeddings`, tried again while that can help."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.embedding.endpoint.answers import require_model, tokens_of, vectors_of
from bge_pipeline.embedding.endpoint.limits import RateLimits
from bge_pipeline.embedding.endpoint.refusals import Transient, explain
from bge_pipeline.errors import EncodingError, ModelUnavailable

logger = logging.getLogger(__name__)

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
    """

    def __init__(
        self, address: Address, limits: RateLimits, *, connections: int, timeout_seconds: float, max_attempts: int
    ) -> None:
        self._address = address
        self._limits = limits
        self._max_attempts = max_attempts
        self._closed = threading.Event()
        key = address.key
        self._http = httpx.Client(
            headers={"User-Agent": "bge-pipeline"}
            | ({"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}),
            timeout=timeout_seconds,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,  # a redirect would carry the texts, and may carry the key, to another host
        )

    def embed(self, texts: Sequence[str], tokens: int) -> Answer:
        """The vectors of the texts, in order.

        Rate limits (429, honouring Retry-After), server errors, lost connections and answers that are no JSON are tried again.

        Args:
            tokens: that the texts are expected to have.

        Raises:
            Refused: the server does not take these texts.
            ModelUnavailable: it cannot be reached, or does not answer as it should, after all attempts.
            ConfigurationError: it does not accept the key, or does not know the model.
            EmbeddingSpaceMismatch: its vectors are of another model, or do not have EMBEDDING_DIMENSIONS dimensions.
            EncodingError: its answer is another than was asked for, or the client was closed.
        """
        retrying = Retrying(
            stop=stop_after_attempt(self._max_attempts),
            wait=_wait,
            retry=retry_if_exception_type(Transient),
            before_sleep=self._note_retry,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            answer = retrying(self._post, texts, tokens)
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
        """Close the connections; whoever waits for another attempt is told at once."""
        self._closed.set()
        self._http.close()

    def _post(self, texts: Sequence[str], tokens: int) -> Any:
        self._sleep(self._limits.seconds_to_wait(tokens))
        body: dict[str, Any] = {"model": self._address.model, "input": list(texts), "encoding_format": "float"}
        if self._address.asks_dimensions:
            body["dimensions"] = self._address.dimensions
        try:
            response = self._http.post(f"{self._address.url}/embeddings", json=body)
            if response.status_code != httpx.codes.OK:
                raise explain(self._address, response)
            return response.json()
        except httpx.RequestError as error:
            raise Transient(self._address.without_key(str(error) or type(error).__name__)) from error
        except ValueError as error:
            raise Transient(f"its answer is no JSON: {error}") from error

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._closed.wait(seconds)
        self.require_open()

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
