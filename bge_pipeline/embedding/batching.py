"""Which texts go through the network together: sorted by length, limited by padded tokens. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.tokenizer import RaggedTokens


@dataclass(frozen=True)
class Batch:
    """Texts for one forward pass.

    Attributes:
        rows: int64 (b,), which texts.
        length: tokens that each is padded to.
    """

    rows: NDArray[np.int64]
    length: int


def plan_batches(
    lengths: NDArray[np.int32], *, token_budget: int, max_texts: int, few_shapes: bool = False
) -> list[Batch]:
    """Every text in exactly one batch, neighbours in length together, longest first.

    Longest first, because a budget that is too large for the memory then shows at once, and because short batches at the
    end keep parallel workers busy to the last.

    Args:
        lengths: tokens of each text, (n,).
        token_budget: most padded tokens in a batch; a text longer than this goes alone.
        max_texts: most texts in a batch.
        few_shapes: round padded lengths up to four significant bits, which is 5% more on mixed texts and half as many
            shapes, for networks that prepare something for every new shape.
    """
    order = np.argsort(-lengths, kind="stable")
    padded = np.maximum(lengths[order], 1)
    if few_shapes:
        step = 1 << np.maximum(np.log2(padded).astype(np.int32) - 3, 0)
        padded = -(-padded // step) * step
    batches = []
    first = 0
    while first < len(order):
        length = int(padded[first])
        last = min(first + max(1, min(max_texts, token_budget // length)), len(order))
        batches.append(Batch(order[first:last], length))
        first = last
    return batches


def halves(batch: Batch) -> list[Batch]:
    """The batch cut in two, for when its memory could not be had."""
    middle = len(batch.rows) // 2
    return [Batch(batch.rows[:middle], batch.length), Batch(batch.rows[middle:], batch.length)]


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


def pad(tokens: RaggedTokens, batch: Batch, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The batch as the rectangular arrays that a transformer takes, int64 (b, length) each.

    Returns:
        `input_ids`, `attention_mask` and, for pairs, `token_type_ids`.
    """
    starts = tokens.offsets[batch.rows]
    lengths = tokens.offsets[batch.rows + 1] - starts
    columns = np.arange(batch.length)
    is_token = columns < lengths[:, None]
    source = (starts[:, None] + columns)[is_token]

    def rectangle(values: NDArray[np.int32], filler: int) -> NDArray[np.int64]:
        filled = np.full(is_token.shape, filler, np.int64)
        filled[is_token] = values[source]
        return filled

    arrays = {"input_ids": rectangle(tokens.ids, pad_id), "attention_mask": is_token.astype(np.int64)}
    if tokens.types is not None:
        arrays["token_type_ids"] = rectangle(tokens.types, 0)
    return arrays
