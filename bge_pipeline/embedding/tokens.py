"""Token ids of many texts, as they travel from the tokenizer through layouts to a backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of many texts, one after the other.

    Attributes:
        ids: int32 (total,).
        offsets: int64 (n + 1,); text i is `ids[offsets[i]:offsets[i + 1]]`.
        types: int32 (total,), 0 for the first and 1 for the second text of a pair; None where all are 0 or the model knows none.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each text, int32 (n,)."""
        return np.diff(self.offsets).astype(np.int32)
