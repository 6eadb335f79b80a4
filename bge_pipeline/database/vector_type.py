"""The type of a column of vectors that this project adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ElementType = Literal["vector", "halfvec"]
"""pgvector's types of dense vectors: four bytes a dimension, and two."""


@dataclass(frozen=True)
class VectorType:
    """`vector(384)` or `halfvec(384)`."""

    element: ElementType
    dimensions: int

    @property
    def bytes(self) -> int:
        """Of one value: https://github.com/pgvector/pgvector#vector-type."""
        return 8 + (4 if self.element == "vector" else 2) * self.dimensions

    def __str__(self) -> str:
        return f"{self.element}({self.dimensions})"
