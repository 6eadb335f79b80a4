"""Pooling: the states of a text's tokens become the one vector of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

Pooling = Callable[[Any, Any, Any], Any]
"""(states, starts, lengths) -> one vector a text, of any length."""


def pool(states: Any, starts: Any, lengths: Any, pooling: str) -> Any:
    """Unit vectors float32 (b, width) of texts.

    Of NumPy arrays as of PyTorch's tensors, since OpenVINO gives the ones and PyTorch the others; the result is of the same
    kind.

    Args:
        states: the states of all tokens, one after the other, (tokens, width).
        starts: int64 (b,), where each text begins among them, ascending from 0; there may be room between texts.
        lengths: (b,), tokens of each text.
        pooling: one of `POOLINGS`.
    """
    vectors = _POOLINGS[pooling](states, starts, lengths)
    if not isinstance(vectors, np.ndarray):
        vectors = vectors.float()
    return of_unit_length(vectors)


def of_unit_length(vectors: Any) -> Any:
    """Vectors (b, width) divided by their lengths, those of NumPy as those of PyTorch; zeros stay zeros."""
    norms = (vectors * vectors).sum(-1, keepdims=True) ** 0.5
    return vectors / norms.clip(np.finfo(np.float32).tiny)


def concatenated(vectors: Sequence[Any]) -> Any:
    """Arrays (b, width) side by side, those of NumPy as those of PyTorch."""
    if isinstance(vectors[0], np.ndarray):
        return np.concatenate(vectors, axis=-1)
    import torch

    return torch.cat(list(vectors), dim=-1)


def _first(states: Any, starts: Any, _lengths: Any) -> Any:
    return states[starts]


def _last(states: Any, starts: Any, lengths: Any) -> Any:
    return states[starts + lengths - 1]


def _combined(how: str, states: Any, starts: Any, lengths: Any) -> Any:
    """The mean or the maximum of the states of each text."""
    if not isinstance(states, np.ndarray):
        return _combined_by_torch(how, states.float(), starts, lengths)
    combine = np.add if how == "mean" else np.maximum
    # A third of the time of one `reduceat` over all texts.
    places = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
    combined = np.stack([combine.reduce(states[start:end], axis=0) for start, end in places])
    return combined / lengths[:, None].astype(np.float32) if how == "mean" else combined


def _combined_by_torch(how: str, states: Any, starts: Any, lengths: Any) -> Any:
    import torch

    if states.device.type == "mps":  # where PyTorch has no such reduction
        states, starts, lengths = states.cpu(), starts.cpu(), lengths.cpu()
    # Texts and the room after each, in turn.
    edges = torch.stack([starts, starts + lengths], dim=1).reshape(-1)
    pieces = torch.cat([torch.diff(edges), len(states) - edges[-1:]])
    return torch.segment_reduce(states, how, lengths=pieces, axis=0)[::2]


_POOLINGS: dict[str, Pooling] = {
    "cls": _first,
    "mean": partial(_combined, "mean"),
    "max": partial(_combined, "max"),
    "lasttoken": _last,
}

POOLINGS = tuple(_POOLINGS)
"""The poolings that there are, by the names that sentence-transformers gives them."""
