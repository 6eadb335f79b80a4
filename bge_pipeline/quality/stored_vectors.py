"""Stored vectors in place of an encoder that is not at hand: a row's own vector stands for a query of its text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.database.sampling import SampledRows
from bge_pipeline.space import EmbeddingSpace


class StoredVectors:
    """Knows the vectors of the texts of a sample, and of no others.

    Attributes:
        space: of the column that they come from, None where nobody recorded it.
    """

    def __init__(self, rows: SampledRows, column: str, space: EmbeddingSpace | None) -> None:
        self.space = space
        self._vectors = dict(zip(rows.texts, rows.vectors[column], strict=True))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions) of texts of the sample."""
        return np.stack([self._vectors[text] for text in texts])
