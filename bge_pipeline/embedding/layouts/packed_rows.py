"""Several texts in one row of a batch, one after the other, so that hardly anything is padding.

A network that is run so lets every token see the tokens of its own text alone. After Krell et al., "Efficient Sequence
Packing without Cross-contamination" (2021), with best fit where they count a histogram.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.layouts import Batch, unpadded
from bge_pipeline.embedding.tokens import RaggedTokens

_LEAST_ROOM = 64
"""Tokens for which a row of short texts has room: attention costs more in longer rows, but fewer are left half empty."""

_ROOM_FOR_TWO = 128
"""Up to this many tokens a row has room for two of its longest text: where all are about as long, none would fit beside
it otherwise, and a tenth of the rows would be padding."""

_LENGTH_MULTIPLE = 16
"""Row lengths are multiples of it, the floats of a vector register."""


class PackedRows:
    """Rows of texts, with some room left in the end.

    Args:
        pad_id: the token that fills the room.
    """

    name: ClassVar[str] = "packed rows"

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[Batch]:
        """As `Layout.plan`, for texts of at least one token; rows of one length together, so that shapes are few."""
        rows_of_length: dict[int, list[list[int]]] = defaultdict(list)
        for row in _best_fit(lengths, max_texts):
            rows_of_length[_row_length(int(lengths[row].sum()))].append(row)
        batches = []
        for length in sorted(rows_of_length, reverse=True):
            batch: list[list[int]] = []
            for row in rows_of_length[length]:
                is_full = (len(batch) + 1) * length > token_budget or sum(map(len, batch)) + len(row) > max_texts
                if batch and is_full:
                    batches.append(_batch(batch, length, lengths))
                    batch = []
                batch.append(row)
            batches.append(_batch(batch, length, lengths))
        return batches

    def arrays(self, tokens: RaggedTokens, batch: Batch) -> dict[str, NDArray[np.int64]]:
        """What a network over packed rows takes, int64 of the batch's shape each.

        Returns:
            `input_ids`; `position_ids`, from 0 in every text; `segments`, another number for every text and 0 between them.
        """
        lengths, positions, ids = unpadded(tokens, batch.rows)
        place = np.repeat(batch.starts, lengths) + positions

        def rectangle(values: NDArray[np.integer], filler: int) -> NDArray[np.int64]:
            filled = np.full(batch.shape, filler, np.int64)
            filled.reshape(-1)[place] = values
            return filled

        return {
            "input_ids": rectangle(ids, self._pad_id),
            "position_ids": rectangle(positions, 0),
            "segments": rectangle(np.repeat(np.arange(1, len(lengths) + 1), lengths), 0),
        }


def _best_fit(lengths: NDArray[np.int32], max_texts: int) -> Iterator[list[int]]:
    """Rows as lists of texts: each begins with the longest that is left and takes the longest that still fit."""
    left: dict[int, list[int]] = defaultdict(list)
    for text, length in enumerate(lengths.tolist()):
        left[length].append(text)
    known = sorted(left)
    while known:
        row: list[int] = []
        longest = known[-1]
        room = _row_length(max(longest, min(2 * longest, _ROOM_FOR_TWO), _LEAST_ROOM))
        while len(row) < max_texts and (fitting := bisect_right(known, room)):
            length = known[fitting - 1]
            row.append(left[length].pop())
            room -= length
            if not left[length]:
                known.pop(fitting - 1)
        yield row


def _row_length(tokens: int) -> int:
    """That many, rounded up: there are at most eight lengths for each doubling, so that shapes are few."""
    step = max(_LENGTH_MULTIPLE, 1 << max(tokens.bit_length() - 4, 0))
    return -(-tokens // step) * step


def _batch(rows: list[list[int]], length: int, lengths: NDArray[np.int32]) -> Batch:
    starts = [number * length + lengths[row].cumsum(dtype=np.int64) - lengths[row] for number, row in enumerate(rows)]
    texts = np.concatenate(rows)
    return Batch(texts, np.concatenate(starts), lengths[texts], (len(rows), length))
