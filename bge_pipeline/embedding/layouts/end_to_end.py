"""All texts of a batch one after the other in a single row, nothing padded, for attention that is told where each begins."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.layouts import Batch, unpadded
from bge_pipeline.embedding.layouts.padded import rectangles
from bge_pipeline.embedding.tokens import RaggedTokens


class EndToEnd:
    """One row of texts, those of about the same length together."""

    name: ClassVar[str] = "end to end"

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[Batch]:
        """As `Layout.plan`; the budget is counted as if each text were padded to the longest of its batch."""
        padded = rectangles(lengths, token_budget=token_budget, max_texts=max_texts)
        return [_end_to_end(batch.rows, batch.lengths) for batch in padded]

    def arrays(self, tokens: RaggedTokens, batch: Batch) -> dict[str, Any]:
        """What a network over texts end to end takes.

        Returns:
            `input_ids` and `position_ids`, from 0 in every text, int64 (1, tokens) each; `boundaries` int32 (b + 1,), where
            each text begins and the last one ends; `longest`, the tokens of the longest text.
        """
        lengths, positions, ids = unpadded(tokens, batch.rows)
        return {
            "input_ids": ids.astype(np.int64)[None],
            "position_ids": positions[None],
            "boundaries": np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
            "longest": int(lengths.max()),
        }


def _end_to_end(rows: NDArray[np.int64], lengths: NDArray[np.int32]) -> Batch:
    ends: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64)
    return Batch(rows, ends - lengths, lengths, (1, int(ends[-1])))
