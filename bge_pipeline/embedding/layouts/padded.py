"""Each text in a row of its own, padded to the longest of its batch; texts of about the same length go together."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.layouts import Batch
from bge_pipeline.embedding.tokens import RaggedTokens


class Padded:
    """A rectangle of texts.

    Args:
        pad_id: the token that fills it up.
        few_shapes: for networks that prepare something for every new shape.
    """

    name: ClassVar[str] = "padded"

    def __init__(self, pad_id: int, *, few_shapes: bool = False) -> None:
        self._pad_id = pad_id
        self._few_shapes = few_shapes

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[Batch]:
        """As `Layout.plan`."""
        return rectangles(lengths, token_budget=token_budget, max_texts=max_texts, few_shapes=self._few_shapes)

    def arrays(self, tokens: RaggedTokens, batch: Batch) -> dict[str, NDArray[np.int64]]:
        """The rectangular arrays that a transformer takes, int64 (b, length) each.

        Returns:
            `input_ids`, `attention_mask` and, for pairs, `token_type_ids`.
        """
        columns = np.arange(batch.shape[1])
        is_token = columns < batch.lengths[:, None]
        source = (tokens.offsets[batch.rows][:, None] + columns)[is_token]

        def rectangle(values: NDArray[np.int32], filler: int) -> NDArray[np.int64]:
            filled = np.full(batch.shape, filler, np.int64)
            filled[is_token] = values[source]
            return filled

        arrays = {"input_ids": rectangle(tokens.ids, self._pad_id), "attention_mask": is_token.astype(np.int64)}
        if tokens.types is not None:
            arrays["token_type_ids"] = rectangle(tokens.types, 0)
        return arrays


def rectangles(
    lengths: NDArray[np.int32], *, token_budget: int, max_texts: int, few_shapes: bool = False
) -> list[Batch]:
    """Batches as `Layout.plan` makes them, of neighbours in length.

    Args:
        few_shapes: round padded lengths up to four significant bits, which is 5% more on mixed texts and half as many
            shapes.
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
        rows = order[first:last]
        batches.append(Batch(rows, np.arange(len(rows)) * length, lengths[rows], (len(rows), length)))
        first = last
    return batches
