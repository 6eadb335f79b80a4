"""An OpenAI-compatible chat endpoint that writes passages. Knows HTTP, and nothing of vectors."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from bge_pipeline.errors import ModelUnavailable
from bge_pipeline.settings.web_url import checked_url

_INSTRUCTION = (
    "Write one short passage, at most 80 words, that answers the question. Only the passage, in its language."
)
_MAX_ANSWER_BYTES = 1 << 20


class _StayingHere(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the query, and the key with it, to another host: it is an answer that is none."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Nothing to ask in its place."""


_opener = urllib.request.build_opener(_StayingHere)


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
        checked_url("QUERY_EXPANSION_URL", self.url, key="QUERY_EXPANSION_KEY")

    def __call__(self, query: str) -> str:
        """The passage.

        Raises:
            ModelUnavailable: the endpoint does not answer, refuses, or answers something else.
        """
        endpoint = f"{self.url.rstrip('/')}/chat/completions"
        try:
            with _opener.open(self._request(endpoint, query), timeout=self.timeout_seconds) as response:
                answer = json.loads(response.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise self._unavailable(f"{endpoint} answered {error.code} {error.reason}") from error
        except (OSError, ValueError, RecursionError, HTTPException) as error:
            raise self._unavailable(f"{endpoint}: {str(error) or type(error).__name__}") from error
        passage = _passage(answer)
        if not passage:
            raise self._unavailable(
                f"{endpoint}: expected a chat completion with text, got {self._without_key(str(answer))[:200]}"
            )
        return passage

    def _unavailable(self, message: str) -> ModelUnavailable:
        """The error, without the key, should the server have repeated it."""
        return ModelUnavailable(self._without_key(message))

    def _without_key(self, said: str) -> str:
        return said.replace(self.key, "[key]") if self.key else said

    def _request(self, endpoint: str, query: str) -> urllib.request.Request:
        messages = [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": query}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 160}
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(endpoint, json.dumps(body).encode(), headers)  # noqa: S310 - checked above


def _passage(answer: Any) -> str | None:
    """The text of a chat completion, None where the answer is something else."""
    try:
        passage = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    if not isinstance(passage, str):
        return None
    # Half of a character that the limit of tokens cut in two is no text to a tokenizer.
    return passage.encode("utf-8", "replace").decode().strip()
