"""An OpenAI-compatible embeddings endpoint: batches, retries, and answers that are checked before they are believed.

The protocol: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bge_pipeline.errors import ConfigurationError, EmbeddingSpaceMismatch, EncodingError, ModelUnavailable
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

OPENAI_HOST = "api.openai.com"
_USUAL_TEXTS = 256
_MOST_TEXTS = 2_048
"""Texts that OpenAI takes in one request."""
_TIMEOUT_SECONDS = 60
_ATTEMPTS = 6
_LONGEST_WAIT_SECONDS = 120
"""A server that asks for a longer pause is reported at once."""
_CHOOSABLE_DIMENSIONS = "text-embedding-3"
"""OpenAI's models that accept `dimensions`; other models and servers refuse the field."""
_TRANSIENT = (408, 409, *range(500, 600))
_NO_QUOTA = "insufficient_quota"
"""OpenAI's code for an account without credit; it comes as 429 and no waiting helps."""
_MISTAKES = {
    401: "EMBEDDING_API_KEY is missing or not accepted",
    403: "EMBEDDING_API_KEY does not allow this",
    404: "EMBEDDING_API_URL or EMBEDDING_MODEL is not known there",
}


class _Transient(Exception):
    """Worth another attempt, after `wait_seconds` if the server asked for it."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class _TooLarge(Exception):
    """The request has too many texts for the server."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""


@dataclass(frozen=True)
class EmbeddingsEndpoint:
    """One model behind one endpoint. Thread-safe.

    Attributes:
        url: base URL, to which `/embeddings` is added.
        model: name of the model there.
        key: sent as a bearer token, unless empty.
        dimensions: what every vector must have.
        batch_size: most texts in one request.
    """

    url: str
    model: str
    key: str
    dimensions: int
    batch_size: int

    @classmethod
    def from_settings(cls, settings: Settings) -> EmbeddingsEndpoint:
        """The endpoint of EMBEDDING_API_URL.

        Raises:
            ConfigurationError: a variable that it needs is missing or wrong.
        """
        url = urlsplit(settings.embedding_api_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigurationError(
                f"EMBEDDING_API_URL: expected an http or https URL (held {settings.embedding_api_url!r})"
            )
        if "embedding_model" not in settings.model_fields_set:
            raise ConfigurationError(
                "EMBEDDING_PROVIDER=openai: expected the endpoint's name of the model in EMBEDDING_MODEL, which is not set",
                next_step="EMBEDDING_MODEL=text-embedding-3-small EMBEDDING_DIMENSIONS=1536, for example",
            )
        key = settings.embedding_api_key.get_secret_value() if settings.embedding_api_key else ""
        if not key and url.hostname == OPENAI_HOST:
            raise ConfigurationError(f"EMBEDDING_API_KEY: expected a key for {OPENAI_HOST}, which is not set")
        return cls(
            url=settings.embedding_api_url.rstrip("/"),
            model=settings.embedding_model,
            key=key,
            dimensions=settings.embedding_dimensions,
            batch_size=min(settings.embedding_batch_size or _USUAL_TEXTS, _MOST_TEXTS),
        )

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of the texts, in order.

        Rate limits (429, honouring Retry-After), server errors and lost connections are tried again, six times in all.

        Raises:
            ModelUnavailable: the endpoint cannot be reached, or does not answer as it should, after all attempts.
            ConfigurationError: it does not accept the key, or does not know the model.
            EmbeddingSpaceMismatch: its vectors do not have EMBEDDING_DIMENSIONS dimensions.
            EncodingError: it refuses these texts.
        """
        vectors: list[list[float]] = []
        for first in range(0, len(texts), self.batch_size):
            vectors += self._embed(texts[first : first + self.batch_size])
        return vectors

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        retrying = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            retry=retry_if_exception_type(_Transient),
            before_sleep=_log_retry,
            reraise=True,
        )
        try:
            answer = retrying(self._post, texts)
        except _Transient as error:
            raise ModelUnavailable(
                f"{self.url} did not embed {len(texts)} texts in {_ATTEMPTS} attempts: {error}",
                next_step="check EMBEDDING_API_URL and the limits of its account, then run the same command again",
            ) from error
        except _TooLarge as error:
            if len(texts) == 1:
                raise EncodingError(f"{self.url} refuses a text of {len(texts[0]):,} characters: {error}") from error
            half = len(texts) // 2
            return self._embed(texts[:half]) + self._embed(texts[half:])
        return self._vectors(answer, len(texts))

    def _post(self, texts: Sequence[str]) -> Any:
        body: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        if self.model.startswith(_CHOOSABLE_DIMENSIONS):
            body["dimensions"] = self.dimensions
        headers = {"Content-Type": "application/json", "User-Agent": "bge-pipeline"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/embeddings", json.dumps(body).encode(), headers)  # noqa: S310 - checked
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._explained(error.code, error.headers, error.read(2_000).decode(errors="replace")) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(f"{getattr(error, 'reason', error)}") from error
        except ValueError as error:
            raise _Transient(f"its answer is no JSON: {error}") from error

    def _explained(self, status: int, headers: Message, body: str) -> Exception:
        said = f"HTTP {status}, {self._message(body)}"
        if status in _MISTAKES:
            return ConfigurationError(f"{self.url}: {_MISTAKES[status]}: {said}")
        if status == 413:
            return _TooLarge(said)
        if status in _TRANSIENT or (status == 429 and _NO_QUOTA not in body):
            wait_seconds = _retry_after(headers.get("Retry-After"))
            if wait_seconds is None or wait_seconds <= _LONGEST_WAIT_SECONDS:
                return _Transient(said, wait_seconds)
            return ModelUnavailable(f"{self.url} asks for a pause of {wait_seconds:,.0f} seconds: {said}")
        refusal = ModelUnavailable if status == 429 else EncodingError
        return refusal(f"{self.url} refused: {said}")

    def _message(self, body: str) -> str:
        """What the server said, without the key, should it repeat it."""
        try:
            said = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = body
        said = str(said).strip()[:300]
        return said.replace(self.key, "[key]") if self.key else said

    def _vectors(self, answer: Any, n: int) -> list[list[float]]:
        """The vectors of an answer in the order of the texts, which is by `index`, not as they arrive."""
        try:
            vectors = {int(item["index"]): [float(value) for value in item["embedding"]] for item in answer["data"]}
        except (KeyError, TypeError, ValueError) as error:
            raise EncodingError(
                f"{self.url}: expected data with index and embedding, got {str(answer)[:200]}"
            ) from error
        if sorted(vectors) != list(range(n)):
            raise EncodingError(f"{self.url}: expected {n} vectors, got those of the texts {sorted(vectors)[:20]}")
        for vector in vectors.values():
            if len(vector) != self.dimensions:
                raise EmbeddingSpaceMismatch(
                    f"EMBEDDING_DIMENSIONS={self.dimensions}, but {self.model} at {self.url} makes vectors of "
                    f"{len(vector)} dimensions",
                    state="no vector was returned",
                    next_step=f"EMBEDDING_DIMENSIONS={len(vector)}, or another EMBEDDING_MODEL",
                )
            if not all(map(math.isfinite, vector)):
                raise EncodingError(f"{self.url}: expected finite numbers, got NaN or infinity")
        return [vectors[position] for position in range(n)]


_backoff = wait_random_exponential(multiplier=0.5, max=30)


def _wait(state: RetryCallState) -> float:
    asked = getattr(state.outcome.exception(), "wait_seconds", None) if state.outcome else None
    return asked if asked is not None else _backoff(state)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_seconds = state.next_action.sleep if state.next_action else 0
    logger.warning("attempt %d of %d: %s; again in %.1f s", state.attempt_number, _ATTEMPTS, error, wait_seconds)


def _retry_after(value: str | None) -> float | None:
    """Seconds in a Retry-After header, which is a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass  # not a number: a date
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError):
        return None
