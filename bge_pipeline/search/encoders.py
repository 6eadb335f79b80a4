"""Which encoder makes the query's vector: the one whose embedding space is the column's, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import EmbeddingSpaceMismatch
from bge_pipeline.search.column import SearchedColumn
from bge_pipeline.space import EmbeddingSpace


class EncodesQueries(Protocol):
    """The least that an application's own encoder offers. A `space` attribute, where it has one, is compared."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions), in order."""
        ...


AnyQueryEncoder = EncodesQueries | QueryEncoder
Encode = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class ChosenEncoder:
    """What turns queries, and passages for query expansion, into the column's vectors."""

    queries: Encode
    passages: Encode

    def query(self, text: str, searched: SearchedColumn) -> NDArray[np.float32]:
        """The vector of one query, float32 (dimensions,).

        Raises:
            EmbeddingSpaceMismatch: it does not have the column's dimensions.
        """
        vector: NDArray[np.float32] = np.asarray(self.queries([text]), np.float32)[0]
        if searched.column.dimensions not in (None, len(vector)):
            raise EmbeddingSpaceMismatch(
                f"{searched} holds vectors of {searched.column.dimensions} dimensions, and the encoder made {len(vector)}",
                state="nothing was searched",
                next_step="give Retriever the encoder that made the column's vectors, as query_encoder",
            )
        return vector


def choose_encoder(
    searched: SearchedColumn, given: AnyQueryEncoder | None, service: Callable[[], EmbeddingsService]
) -> ChosenEncoder:
    """The encoder of the column's embedding space.

    A recorded space must be the encoder's own. Where none is recorded, only an encoder that the caller gave
    is used, on the caller's word, and only if the dimensions agree.

    Args:
        searched: the column.
        given: the caller's encoder, usually of the old model.
        service: makes the configured model; asked only where the given encoder does not fit.

    Raises:
        EmbeddingSpaceMismatch: neither fits.
    """
    recorded = searched.space
    space: EmbeddingSpace | None = getattr(given, "space", None)
    if given is not None and (recorded is None or recorded.is_same_as(space)):
        return _as_chosen(given)
    if recorded is None:
        raise EmbeddingSpaceMismatch(
            f"{searched} has no embedding space recorded: the configured model may not be the one that made its vectors",
            state="nothing was searched",
            next_step="give Retriever the encoder that made them, as query_encoder; after the swap it is chosen by itself",
        )
    configured = service()
    if recorded.is_same_as(configured.space):
        return _as_chosen(configured)
    raise EmbeddingSpaceMismatch(
        f"{searched} holds vectors of {recorded}, and the configured model makes {configured.space} "
        f"({'; '.join(recorded.differences(configured.space))})",
        state="nothing was searched",
        next_step="set EMBEDDING_MODEL to the column's model, or give Retriever the encoder of the old one, as query_encoder",
    )


def _as_chosen(encoder: Any) -> ChosenEncoder:
    if hasattr(encoder, "encode_queries"):
        return ChosenEncoder(encoder.encode_queries, getattr(encoder, "encode_texts", encoder.encode_queries))
    return ChosenEncoder(
        lambda texts: encoder.encode(encoder.tokenize_queries(texts)),
        lambda texts: encoder.encode(encoder.tokenize(texts)),
    )
