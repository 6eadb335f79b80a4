"""The identity of an embedding space: vectors of two spaces never meet in one column."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

_INFORMATIVE = frozenset({"model", "precision"})


@dataclass(frozen=True)
class EmbeddingSpace:
    """What decides whether two vectors can be compared.

    `model` is a name for people and `precision` a fact about the machine that made the vectors; neither is part of
    the identity. The identity of the weights is `revision`, a digest of their bytes, so that a hub name and a local
    copy of the same model are the same space.

    Attributes:
        model: hub name or folder the weights came from.
        revision: digest of weights and tokenizer, for example `sha256:0123456789abcdef`.
        dimensions: length of a vector.
        pooling: `cls`, `mean`, `lasttoken` or the name of another pooling.
        normalized: whether every vector has unit length.
        query_prompt: text put before a query.
        passage_prompt: text put before a passage.
        max_tokens: tokens of a text that are read; the rest is cut off.
        precision: arithmetic that made the vectors, for example `fp32` or `int8`.
    """

    model: str
    revision: str
    dimensions: int
    pooling: str
    normalized: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    max_tokens: int = 512
    precision: str = "fp32"

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that must agree for two vectors to be comparable."""
        return {name: value for name, value in asdict(self).items() if name not in _INFORMATIVE}

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of the identity, for names of indexes and caches."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]

    def is_same_as(self, other: EmbeddingSpace | None) -> bool:
        """Whether vectors of the two spaces may stand in one column."""
        return other is not None and self.identity == other.identity

    def differences(self, other: EmbeddingSpace) -> list[str]:
        """The fields of the identity that differ, as `field: ours != theirs`."""
        theirs = other.identity
        return [
            f"{name}: {value!r} != {theirs[name]!r}" for name, value in self.identity.items() if value != theirs[name]
        ]

    def as_dict(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbeddingSpace:
        """The space that `as_dict` described; fields of later versions are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def __str__(self) -> str:
        return f"{self.model} ({self.dimensions} dimensions, {self.pooling} pooling, {self.revision})"
