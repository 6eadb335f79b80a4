"""Texts cut into requests, by their number and by their tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def requests_of(token_counts: NDArray[np.int32], most_texts: int, most_tokens: int) -> Iterator[range]:
    """Positions of the texts of each request, in order; a text of more tokens than that goes alone."""
    first = tokens = 0
    for position, count in enumerate(token_counts.tolist()):
        if position > first and (position - first >= most_texts or tokens + count > most_tokens):
            yield range(first, position)
            first, tokens = position, 0
        tokens += count
    if first < len(token_counts):
        yield range(first, len(token_counts))
