"""An OpenAI-compatible chat endpoint that writes passages. Knows HTTP, and nothing of vectors."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bge_pipeline.errors import ConfigurationError, ModelUnavailable

_INSTRUCTION = (
    "Write one short passage, at most 80 words, that answers the question. Only the passage, in its language."
)
_MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class PassageWriter:
    """Asks `POST {url}/chat/completions` for a passage that answers a query.

    Attributes:
        url: base URL, for example `https://api.openai.com/v1`.
        model: the endpoint's name for it.
        key: sent as bearer token where given.
        timeout_seconds: for connecting, and for each wait on the answer.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ConfigurationError(f"QUERY_EXPANSION_URL: expected http:// or https://, got {self.url!r}")

    def __call__(self, query: str) -> str:
        """The passage.

        Raises:
            ModelUnavailable: the endpoint does not answer, refuses, or answers something else.
        """
        endpoint = f"{self.url.rstrip('/')}/chat/completions"
        try:
            with urllib.request.urlopen(self._request(endpoint, query), timeout=self.timeout_seconds) as response:  # noqa: S310 - checked above
                answer = json.loads(response.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise ModelUnavailable(f"{endpoint} answered {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f"{endpoint}: {error}") from error
        return _passage(endpoint, answer)

    def _request(self, endpoint: str, query: str) -> urllib.request.Request:
        messages = [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": query}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 160}
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(endpoint, json.dumps(body).encode(), headers)  # noqa: S310 - checked above


def _passage(endpoint: str, answer: Any) -> str:
    try:
        passage = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        passage = None
    if not isinstance(passage, str) or not passage.strip():
        raise ModelUnavailable(f"{endpoint}: expected a chat completion with text, got {str(answer)[:200]}")
    return passage.strip()
