"""What the backfill asks of an encoder: two steps, so that tokenising can run beside encoding."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.errors import EncodingError
from bge_pipeline.space import EmbeddingSpace

PLAIN_SENTENCE = "The quick brown fox jumps over the lazy dog."
"""What every encoder that works embeds: one that fails on it is at fault, and no text of anybody's."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts ready for the encoder that tokenised them.

    Attributes:
        payload: the encoder's own representation; nobody else looks inside.
        token_counts: int32 (n,), tokens that the encoder will read of each text.
        truncated: bool (n,), whether the text was longer than the encoder reads.
        abandoned: set when nobody wants the vectors any more; an encoder whose texts cost something sends no more of them.
    """

    payload: Any
    token_counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    abandoned: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.token_counts)


class Encoder(Protocol):
    """Turns passages into vectors of one embedding space. Implementations are thread-safe."""

    @property
    def space(self) -> EmbeddingSpace:
        """The embedding space of every vector this encoder returns."""
        ...

    @property
    def device(self) -> str:
        """Where the arithmetic happens, for example `cpu` or `cuda:0`."""
        ...

    @property
    def concurrent_calls(self) -> int:
        """How many threads should call `encode` at once to keep the device busy."""
        ...

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise passages; cheap beside `encode`, and safe to run in another thread."""
        ...

    def encode(self, tokens: TokenizedTexts) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions), in the order of the texts, of unit length."""
        ...


class QueryEncoder(Encoder, Protocol):
    """What EmbeddingsService asks on top: queries, a ceiling on the batch, and an end."""

    def tokenize_queries(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise search queries, with the model's query prompt where it has one."""
        ...

    def encode(self, tokens: TokenizedTexts, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """As `Encoder.encode`, with at most `batch_size` texts in one forward pass."""
        ...

    def close(self) -> None:
        """Release the model and the device's memory."""
        ...


class TextsRefused(EncodingError):
    """An encoder does not take some texts, knows which, and has the vectors of the others.

    Attributes:
        encoder: who does not take them, in words.
        reasons: why, by the position of the text.
        vectors: float32 (n, dimensions) of all n texts; those of the refused ones mean nothing.
    """

    def __init__(self, encoder: str, reasons: Mapping[int, str], vectors: NDArray[np.float32]) -> None:
        first = min(reasons)
        super().__init__(
            f"{encoder} does not embed {len(reasons)} of {len(vectors)} texts; the first: {reasons[first]}"
        )
        self.encoder = encoder
        self.reasons = reasons
        self.vectors = vectors
