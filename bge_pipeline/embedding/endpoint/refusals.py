"""What an answer that is none means: worth another attempt, a mistake in the settings, or texts that the server does not take."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable

_LONGEST_WAIT_SECONDS = 120
"""A server that asks for a longer pause is reported at once."""
_TRANSIENT = (408, 409, 425, *range(500, 600))
_TEXTS_REFUSED = (400, 413, 422)
_NO_QUOTA = "insufficient_quota"
"""OpenAI's code for an account without credit; it comes as 429 and no waiting helps."""
_MISTAKES = {
    401: "EMBEDDING_API_KEY is missing or not accepted",
    403: "EMBEDDING_API_KEY does not allow this",
    404: "EMBEDDING_API_URL or EMBEDDING_MODEL is not known there",
}
_ABOUT_LENGTH = re.compile(
    r"too[ _](long|large|many[ _]tokens)|(longer|larger|shorter) than|exceed|at most|up to \d"
    r"|max(imum)?[ _]?(context|input|sequence|length)|max(imum)?\b.*\btokens|(less|fewer|more) than \d+ tokens"
    r"|token (limit|count)|(context|input|text|sequence|prompt)[ _](length|size|window)|reduce\b.*\blength",
    re.IGNORECASE,
)
_LONGEST_MESSAGE_CHARACTERS = 300
_BEGINNING_CHARACTERS = 32
"""Of a text, by which it is known where a server repeats it."""
_SHORTEST_REPEATED_CHARACTERS = 8
"""Shorter texts are words that a message may have of its own."""


class Transient(Exception):
    """Worth another attempt, after `wait_seconds` if the server asked for it; `is_limit` where all requests have to wait."""

    def __init__(self, message: str, wait_seconds: float | None = None, *, is_limit: bool = False) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.is_limit = is_limit


class Refused(Exception):
    """The server does not take these texts, together or one of them; `is_length` where it may take shorter ones."""

    def __init__(self, message: str, *, is_length: bool) -> None:
        super().__init__(message)
        self.is_length = is_length


def explain(address: Address, response: httpx.Response, texts: Sequence[str]) -> Exception:
    """The exception that says what an answer other than 200 to these texts means, without what it repeats of them."""
    status = response.status_code
    body = response.text
    message = address.without_key(_without_texts(_message(body), texts)).strip()
    said = f"HTTP {status}, {message[:_LONGEST_MESSAGE_CHARACTERS]}"
    if status in _MISTAKES:
        return ConfigurationError(f"{address.url}: {_MISTAKES[status]}: {said}")
    if status in _TEXTS_REFUSED:
        return Refused(said, is_length=status == 413 or bool(_ABOUT_LENGTH.search(f"{message} {_kinds(body)}")))
    if status in _TRANSIENT or (status == 429 and _NO_QUOTA not in body):
        wait_seconds = retry_after(response.headers.get("Retry-After"))
        if wait_seconds is None or wait_seconds <= _LONGEST_WAIT_SECONDS:
            return Transient(said, wait_seconds, is_limit=status == 429)
        return ModelUnavailable(f"{address.url} asks for a pause of {wait_seconds:,.0f} seconds: {said}")
    refusal = ModelUnavailable if status == 429 else EncodingError
    return refusal(f"{address.url} refused: {said}")


def retry_after(value: str | None) -> float | None:
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


def _message(body: str) -> str:
    """What the server said: in OpenAI's form, TEI's, vLLM's or FastAPI's, whose `input` is left out, or as it is."""
    return next(filter(None, (_words(said, "message", "msg") for said in _parts(body))), body)


def _kinds(body: str) -> str:
    """The names that the server has for what is wrong, `context_length_exceeded` for one."""
    return " ".join(
        _words(said, name) for said in _parts(body) if not isinstance(said, str) for name in ("code", "type")
    )


def _parts(body: str) -> tuple[Any, ...]:
    try:
        answer = json.loads(body)
    except ValueError:
        return ()
    return (answer.get("error"), answer.get("detail"), answer) if isinstance(answer, dict) else ()


def _words(said: Any, *names: str) -> str:
    """The first of these fields that is there; of a list those of all its parts; a text as it is."""
    if isinstance(said, list):
        return "; ".join(filter(None, (_words(part, *names) for part in said)))
    if isinstance(said, dict):
        said = next(filter(None, map(said.get, names)), None)
    return said if isinstance(said, str) else ""


def _without_texts(said: str, texts: Sequence[str]) -> str:
    """What comes before the first text that is repeated, as it is or as Python and JSON write it."""
    beginnings = {
        written[:_BEGINNING_CHARACTERS]
        for text in map(str.strip, texts)
        if len(text) >= _SHORTEST_REPEATED_CHARACTERS
        for written in (text, repr(text)[1:-1], json.dumps(text)[1:-1])
    }
    first = min((said.find(beginning) for beginning in beginnings if beginning in said), default=None)
    return said if first is None else f"{said[:first]}[text]"
