"""Moving a query's vector before the search: what an expansion is, and feedback from the first results. Off by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.search.chat import PassageWriter
from bge_pipeline.settings import SearchSettings


@dataclass(frozen=True)
class ExpansionContext:
    """What an expansion may ask for.

    Attributes:
        query: as it was typed.
        vector: float32 (dimensions,), the query's.
        nearest: (vector, k) -> float32 (at most k, dimensions), the stored vectors nearest to it.
        encode: n passages -> float32 (n, dimensions).
    """

    query: str
    vector: NDArray[np.float32]
    nearest: Callable[[NDArray[np.float32], int], NDArray[np.float32]]
    encode: Callable[[Sequence[str]], NDArray[np.float32]]


class QueryExpansion(Protocol):
    """Another vector for a query."""

    def expand(self, context: ExpansionContext) -> NDArray[np.float32]:
        """The vector to search with, float32 (dimensions,) of unit length.

        Raises:
            BgePipelineError: it could not; the search goes on with the query's own vector and says so.
        """
        ...


@dataclass(frozen=True)
class FeedbackExpansion:
    """Pseudo-relevance feedback: towards the mean of the first results, as Rocchio (1971) moved term vectors.

    In embedding space: Li, Mourad, Zhuang, Koopman and Zuccon, "Pseudo Relevance Feedback with Deep Language Models and
    Dense Retrievers: Successes and Pitfalls", ACM TOIS 41(3), 2023. Costs a second search, and gains nothing on the
    corpora of docs/search.md.

    Attributes:
        passages: first results taken as relevant.
        weight: of their mean, against 1 for the query.
    """

    passages: int = 3
    weight: float = 0.3

    def expand(self, context: ExpansionContext) -> NDArray[np.float32]:
        """Query plus weighted mean of the nearest stored vectors; the query itself on an empty table."""
        nearest = context.nearest(context.vector, self.passages)
        if not len(nearest):
            return context.vector
        return unit(context.vector + self.weight * unit(nearest.mean(axis=0)))


@dataclass(frozen=True)
class HypotheticalPassage:
    """Towards a passage that a language model imagines as the answer.

    Gao, Ma, Lin and Callan, "Precise Zero-Shot Dense Retrieval without Relevance Labels" (HyDE), ACL 2023.

    Attributes:
        write: query -> passage.
    """

    write: Callable[[str], str]

    def expand(self, context: ExpansionContext) -> NDArray[np.float32]:
        """Mean of the query's vector and the imagined passage's."""
        return unit(context.vector + context.encode([self.write(context.query)])[0])


def expansion_from_settings(settings: SearchSettings) -> QueryExpansion | None:
    """What QUERY_EXPANSION asks for."""
    if settings.query_expansion == "feedback":
        return FeedbackExpansion()
    if settings.query_expansion == "chat":
        key = settings.query_expansion_key.get_secret_value() if settings.query_expansion_key is not None else None
        return HypotheticalPassage(PassageWriter(settings.query_expansion_url, settings.query_expansion_model, key))
    return None


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at unit length."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector
