"""Each text once, because transcripts repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """The texts without repetitions, and for every text its place among them, (n,)."""
    position = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return list(position), np.fromiter((position[text] for text in texts), np.intp, len(texts))
