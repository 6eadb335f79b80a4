"""Several texts in one row of a batch, one after the other, so that hardly anything is padding. Pure NumPy.

A network that is run so lets every token see the tokens of its own text alone. After Krell et al., "Efficient Sequence
Packing without Cross-contamination" (2021), with best fit where they count a histogram.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.batching import unpadded
from bge_pipeline.embedding.tokenizer import RaggedTokens

_LEAST_ROOM = 64
"""Tokens for which a row of short texts has room: attention costs more in longer rows, but fewer are left half empty."""

_ROOM_FOR_TWO = 128
"""Up to this many tokens a row has room for two of its longest text: where all are about as long, none would fit beside
it otherwise, and a tenth of the rows would be padding."""

_LENGTH_MULTIPLE = 16
"""Row lengths are multiples of it, the floats of a vector register."""


@dataclass(frozen=True)
class PackedBatch:
    """Texts for one forward pass.

    Attributes:
        rows: int64 (b,), which texts, in the order in which they stand.
        starts: int64 (b,), where each begins when the rows of the batch stand end to end.
        lengths: int32 (b,), tokens of each.
        shape: rows of the batch, tokens of each.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    shape: tuple[int, int]


def plan_packed_batches(lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[PackedBatch]:
    """Every text in exactly one batch, longest rows first; rows of one length together, so that shapes are few.

    Args:
        lengths: tokens of each text, at least 1, (n,).
        token_budget: most tokens in a batch, room between texts included; a longer row goes alone.
        max_texts: most texts in a batch.
    """
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


def pack(tokens: RaggedTokens, batch: PackedBatch, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The batch as the arrays that a network over packed rows takes, int64 of the batch's shape each.

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
        "input_ids": rectangle(ids, pad_id),
        "position_ids": rectangle(positions, 0),
        "segments": rectangle(np.repeat(np.arange(1, len(lengths) + 1), lengths), 0),
    }


def pool(states: NDArray[np.float32], batch: PackedBatch, pooling: str) -> NDArray[np.float32]:
    """Unit vectors float32 (b, width) of a batch's texts.

    Args:
        states: the network's states of all tokens, (rows of the batch, tokens of each, width).
        pooling: `cls`, `mean`, `max` or `lasttoken`.
    """
    flat = states.reshape(-1, states.shape[-1])
    ends = batch.starts + batch.lengths
    if pooling == "cls":
        pooled = flat[batch.starts]
    elif pooling == "lasttoken":
        pooled = flat[ends - 1]
    else:
        combine = np.add if pooling == "mean" else np.maximum
        # A third of the time of one `reduceat` over all texts.
        places = zip(batch.starts.tolist(), ends.tolist(), strict=True)
        pooled = np.stack([combine.reduce(flat[start:end], axis=0) for start, end in places])
    unit: NDArray[np.float32] = pooled / np.maximum(
        np.linalg.norm(pooled, axis=1, keepdims=True), np.finfo(np.float32).tiny
    )
    return unit


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


def _batch(rows: list[list[int]], length: int, lengths: NDArray[np.int32]) -> PackedBatch:
    starts = [number * length + lengths[row].cumsum(dtype=np.int64) - lengths[row] for number, row in enumerate(rows)]
    texts = np.concatenate(rows)
    return PackedBatch(texts, np.concatenate(starts), lengths[texts], (len(rows), length))
