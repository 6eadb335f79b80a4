"""How texts are laid out for a network: padded to a row each, several packed into one row, or all end to end.

Here is what the layouts have in common; each has a module of its own. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.tokens import RaggedTokens


@dataclass(frozen=True)
class Batch:
    """Texts for one forward pass, and where each stands in it.

    Attributes:
        rows: int64 (b,), which texts.
        starts: int64 (b,), where each begins when the rows of the batch stand end to end.
        lengths: int32 (b,), tokens of each.
        shape: rows of the batch, tokens of each, room between and after texts included.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    shape: tuple[int, int]


class Layout(Protocol):
    """Between ragged tokens and the arrays of one kind of network."""

    name: ClassVar[str]

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[Batch]:
        """Every text in exactly one batch, longest first.

        Longest first, because a budget that is too large for the memory then shows at once, and because short batches at
        the end keep parallel workers busy to the last.

        Args:
            lengths: tokens of each text, (n,).
            token_budget: most tokens in a batch, room between texts included; a text longer than this goes alone.
            max_texts: most texts in a batch.
        """
        ...

    def arrays(self, tokens: RaggedTokens, batch: Batch) -> dict[str, Any]:
        """What the network takes for a batch, by the names of its inputs."""
        ...


def halves(layout: Layout, batch: Batch) -> list[Batch]:
    """The batch's texts in batches of at most half as many, for when memory for all of them could not be had."""
    everything = len(batch.rows) * int(batch.lengths.max())
    smaller = layout.plan(batch.lengths, token_budget=everything, max_texts=-(-len(batch.rows) // 2))
    return [replace(half, rows=batch.rows[half.rows]) for half in smaller]


def unpadded(
    tokens: RaggedTokens, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Texts one after the other.

    Returns:
        Tokens of each text, (b,); and for every token of them its place in its text and its id, (tokens,) each.
    """
    starts = tokens.offsets[rows]
    lengths = tokens.offsets[rows + 1] - starts
    positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return lengths, positions, tokens.ids[np.repeat(starts, lengths) + positions]
