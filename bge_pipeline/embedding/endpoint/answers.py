"""Answers of an endpoint, checked before they are believed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.errors import EmbeddingSpaceMismatch, EncodingError

_VERSION = re.compile(r"-\d{4}-?\d{2}(-?\d{2})?$|-\d{3,}$|:[^/]+$|(?<=text-embedding-ada-002)-v2$")
"""Behind a model's name: a date, a number of three digits or more, a tag, and what OpenAI adds to one of its names. Any other
ending is another model's, as with e5-small and e5-small-v2."""


def vectors_of(address: Address, answer: Any, n: int) -> NDArray[np.float32]:
    """The vectors float32 (n, dimensions) in the order of the texts, which is by `index`, not as they arrive.

    A number that is none stays NaN: whose text is at fault, the caller says.

    Raises:
        EncodingError: it is no answer in this protocol, or not of n texts.
        EmbeddingSpaceMismatch: the vectors have other dimensions.
    """
    try:
        lists = {int(item["index"]): item["embedding"] for item in answer["data"]}
        lengths = {len(vector) for vector in lists.values()}
    except (KeyError, TypeError, ValueError) as error:
        said = address.without_key(str(answer))[:200]
        raise EncodingError(f"{address.url}: expected data with index and embedding, got {said}") from error
    if sorted(lists) != list(range(n)) or len(answer["data"]) != n:
        raise EncodingError(
            f"{address.url}: expected {n} vectors, got {len(answer['data'])}, of the texts {sorted(lists)[:20]}"
        )
    if lengths != {address.dimensions}:
        made = max(lengths - {address.dimensions})
        raise EmbeddingSpaceMismatch(
            f"EMBEDDING_DIMENSIONS={address.dimensions}, but {address.model} at {address.url} makes vectors of "
            f"{made} dimensions",
            state="no vector of this answer was used",
            next_step=f"EMBEDDING_DIMENSIONS={made}, another EMBEDDING_MODEL, or EMBEDDING_ASK_DIMENSIONS=always for one that "
            "can choose",
        )
    try:
        return np.array([lists[position] for position in range(n)], np.float32)
    except (TypeError, ValueError) as error:
        raise EncodingError(f"{address.url}: expected vectors of numbers: {error}") from error


def require_model(address: Address, answer: Any) -> None:
    """Pass an answer that names the model that was asked, or none; a server of one model may answer for any name.

    A date or a tag behind the name, and an owner before either of the two names, make no difference.

    Raises:
        EmbeddingSpaceMismatch: it names another one.
    """
    said = answer.get("model") if isinstance(answer, dict) else None
    asked = address.served_model or address.model
    if not isinstance(said, str) or not said:
        return
    for name in (said, _VERSION.sub("", said)):
        if name == asked or name.endswith(f"/{asked}") or asked.endswith(f"/{name}"):
            return
    said = address.without_key(said)[:100]
    raise EmbeddingSpaceMismatch(
        f"{address.url} was asked for vectors of {asked} and says that it has made some of {said}",
        state="no vector of this answer was used",
        next_step=f"EMBEDDING_MODEL={said}, or another EMBEDDING_API_URL; where both names mean one model, as with an alias, "
        f"EMBEDDING_SERVED_MODEL={said}",
    )


def tokens_of(answer: Any) -> int | None:
    """Tokens that the server says it has read; None where it says nothing of the kind."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    read = usage.get("total_tokens") if isinstance(usage, dict) else None
    return read if isinstance(read, int) and read > 0 else None
