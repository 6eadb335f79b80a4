"""How texts are laid out for a network: each padded to a row of its own, or several packed into one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.batching import Batch, pad, plan_batches
from bge_pipeline.embedding.packing import PackedBatch, pack, plan_packed_batches, pool
from bge_pipeline.embedding.tokenizer import RaggedTokens


class Layout(Protocol):
    """Between ragged tokens and the arrays of one kind of network."""

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> Sequence[Any]:
        """Batches, whose `rows` say which texts they hold."""
        ...

    def arrays(self, tokens: RaggedTokens, batch: Any) -> dict[str, NDArray[np.int64]]:
        """What the network takes for a batch."""
        ...

    def outputs(self, found: NDArray[np.float32], batch: Any) -> NDArray[np.float32]:
        """One output float32 (b, width) per text, from what the network gave for the batch."""
        ...


def layout_for(inputs: Collection[str], pad_id: int, pooling: str | None = None) -> Layout:
    """The layout of a converted network, which shows in the names of its inputs.

    Args:
        pooling: of a network that pools; only `outputs` needs it.
    """
    return _Packed(pad_id, pooling) if "segments" in inputs else _Padded(pad_id)


class _Padded:
    """A rectangle of texts of about the same length, for a network that pools for itself."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[Batch]:
        return plan_batches(lengths, token_budget=token_budget, max_texts=max_texts, few_shapes=True)

    def arrays(self, tokens: RaggedTokens, batch: Batch) -> dict[str, NDArray[np.int64]]:
        return pad(tokens, batch, self._pad_id)

    def outputs(self, found: NDArray[np.float32], _batch: Batch) -> NDArray[np.float32]:
        return np.array(found)


class _Packed:
    """Rows that hold several texts, for a network that gives the states of all tokens."""

    def __init__(self, pad_id: int, pooling: str | None) -> None:
        self._pad_id = pad_id
        self._pooling = pooling

    def plan(self, lengths: NDArray[np.int32], *, token_budget: int, max_texts: int) -> list[PackedBatch]:
        return plan_packed_batches(lengths, token_budget=token_budget, max_texts=max_texts)

    def arrays(self, tokens: RaggedTokens, batch: PackedBatch) -> dict[str, NDArray[np.int64]]:
        return pack(tokens, batch, self._pad_id)

    def outputs(self, found: NDArray[np.float32], batch: PackedBatch) -> NDArray[np.float32]:
        assert self._pooling is not None, "only networks that pool are packed"
        return pool(found, batch, self._pooling)
