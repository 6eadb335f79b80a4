"""A sentence-transformers model as an Encoder: tokenizer and backend joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.backend import Backend
from bge_pipeline.embedding.distinct import distinct_texts
from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.models import SentenceModel
from bge_pipeline.embedding.pooling import POOLINGS, of_unit_length
from bge_pipeline.embedding.road import Road
from bge_pipeline.embedding.tasks import EmbedEveryWay
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.space import EmbeddingSpace

_MOST_TEXTS = 4_096
"""In one forward pass, where nobody asks for fewer. What bounds a pass is the memory's budget of tokens; on a GPU, 256 short
texts would leave most of it idle."""


@dataclass(frozen=True)
class _DistinctTexts:
    """Each text once, because transcripts repeat themselves, and for every row which of them it holds."""

    tokens: RaggedTokens
    which: NDArray[np.intp]


class TransformerEncoder:
    """Embeds texts with a transformer. Thread-safe.

    Args:
        batch_size: most texts in one forward pass; as many as the backend has memory for when not given.

    Attributes:
        road: why the model runs here; None where nobody chose.
    """

    def __init__(
        self, model: SentenceModel, tokenizer: Tokenizer, backend: Backend, *, batch_size: int | None = None
    ) -> None:
        self.backend = backend
        self.road: Road | None = None
        self.space: EmbeddingSpace = model.space(backend.precision)
        self._tokenizer = tokenizer
        self._batch_size = batch_size or _MOST_TEXTS

    @property
    def device(self) -> str:
        """Where the arithmetic happens, for example `cpu` or `cuda:0`."""
        return self.backend.device

    @property
    def library(self) -> str:
        """What runs the network: `OpenVINO` or `PyTorch`."""
        return self.backend.library

    @property
    def concurrent_calls(self) -> int:
        """How many threads should call `encode` at once to keep the device busy."""
        return self.backend.concurrent_calls

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise passages, with the passage prompt."""
        return self._tokenize(texts, self.space.passage_prompt)

    def tokenize_queries(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise search queries, with the query prompt."""
        return self._tokenize(texts, self.space.query_prompt)

    def encode(self, tokens: TokenizedTexts, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions), in order, of unit length.

        Raises:
            EncodingError: the device has no memory for even one text, or the encoder was shut down.
        """
        if not len(tokens):
            return np.empty((0, self.space.dimensions), np.float32)
        distinct: _DistinctTexts = tokens.payload
        return self._cut(self.backend.run(distinct.tokens, max_texts=batch_size or self._batch_size))[distinct.which]

    def encode_every_way(self, tokens: TokenizedTexts) -> dict[str, NDArray[np.float32]]:
        """What the network's states become by each pooling, by its name: float32 (n, dimensions), of unit length.

        One pass of the network that is loaded; only `space.pooling` gives vectors of this encoder's space.

        Raises:
            EncodingError: as `encode`.
        """
        distinct: _DistinctTexts = tokens.payload
        together = self.backend.run(distinct.tokens, max_texts=self._batch_size, task=EmbedEveryWay())[distinct.which]
        ways = [self._cut(vectors) for vectors in np.split(together, len(POOLINGS), axis=1)]
        return dict(zip(POOLINGS, ways, strict=True))

    def close(self) -> None:
        """Release the model and the device's memory."""
        self.backend.close()

    def _cut(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """To the dimensions that are stored, and of unit length again."""
        if vectors.shape[1] == self.space.dimensions:
            return vectors
        cut: NDArray[np.float32] = of_unit_length(vectors[:, : self.space.dimensions])
        return cut

    def _tokenize(self, texts: Sequence[str], prompt: str) -> TokenizedTexts:
        distinct, which = distinct_texts(texts)
        tokens, truncated = self._tokenizer.texts([prompt + text for text in distinct])
        return TokenizedTexts(
            payload=_DistinctTexts(tokens, which), token_counts=tokens.lengths[which], truncated=truncated[which]
        )
