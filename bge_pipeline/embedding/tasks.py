"""What a network is run for: to embed texts, with a pooling, or to score pairs of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bge_pipeline.embedding.pooling import POOLINGS, concatenated, pool

TaskName = Literal["embed texts", "score pairs"]


@dataclass(frozen=True)
class EmbedTexts:
    """One vector a text, pooled from the states of its tokens.

    Attributes:
        pooling: one of `pooling.POOLINGS`.
    """

    pooling: str
    name: ClassVar[TaskName] = "embed texts"

    def outputs(self, states: Any, starts: Any, lengths: Any) -> Any:
        """Unit vectors float32 (b, width).

        Args:
            states: what the network gave, (rows, tokens, width), as an array of NumPy or a tensor of PyTorch.
            starts: where each text begins when the rows stand end to end.
            lengths: tokens of each.
        """
        return pool(states.reshape(-1, states.shape[-1]), starts, lengths, self.pooling)


@dataclass(frozen=True)
class EmbedEveryWay:
    """The vectors of every pooling from one pass of the network, side by side in the order of `POOLINGS`."""

    name: ClassVar[TaskName] = "embed texts"

    def outputs(self, states: Any, starts: Any, lengths: Any) -> Any:
        """Unit vectors float32 (b, poolings x width); arguments as of `EmbedTexts`."""
        flat = states.reshape(-1, states.shape[-1])
        return concatenated([pool(flat, starts, lengths, pooling) for pooling in POOLINGS])


@dataclass(frozen=True)
class ScorePairs:
    """One score a pair, which the network itself gives: a cross-encoder."""

    name: ClassVar[TaskName] = "score pairs"

    def outputs(self, scores: Any, starts: Any, lengths: Any) -> Any:  # noqa: ARG002
        """The scores float32 (b, 1), as they are."""
        return scores


Task = EmbedTexts | EmbedEveryWay | ScorePairs
