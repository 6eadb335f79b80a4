"""The graphs, each once: token ids to the states of all tokens, one graph a layout; and pairs of texts to a score.

Every backend runs these, and OpenVINO converts them. Pooling is not in them (pooling.py), and what differs from family to
family they ask of families.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bge_pipeline.embedding.attention import PackedAttention, attend_end_to_end
from bge_pipeline.embedding.families import Family, family_of

_NEVER = -10_000.0
"""Added to a score of attention that is not meant to be: its exponential is 0 in every precision, fp16's range included."""


class Network(nn.Module):
    """A transformer, run in one way.

    Args:
        transformer: from `load_transformer`.
    """

    inputs: ClassVar[tuple[str, ...]]
    """Names of what `forward` takes, as tensors."""

    transformer: Any

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.config: dict[str, Any] = transformer.config.to_dict()
        self.family: Family = family_of(self.config)

    def mask(self, attention_mask: Tensor) -> Any:
        """The mask of padded texts (b, length), as the family wants it."""
        if self.family.mask is None:
            return attention_mask
        return self.family.mask(attention_mask[:, None, None, :].bool(), self.config)

    def positions(self, input_ids: Tensor, place: Tensor) -> Tensor:
        """Positions int64 (b, length) of tokens at these places of their texts, as the family counts."""
        first = self.family.first_position(self.config)
        if not self.family.passes_over_padding:
            return place + first
        is_padding = (input_ids == first - 1).long()
        seen = is_padding.cumsum(1)
        seen_before_text = (seen - is_padding).gather(1, torch.arange(place.shape[1], device=place.device) - place)
        return torch.where(is_padding.bool(), first - 1, place - (seen - seen_before_text) + first)


class PaddedNetwork(Network):
    """Over texts that are padded to one length."""

    inputs = ("input_ids", "attention_mask")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States (b, length, width) of padded texts (b, length)."""
        output = self.transformer(input_ids=input_ids, attention_mask=self.mask(attention_mask))
        states: Tensor = output.last_hidden_state
        return states


class PackedRowsNetwork(Network):
    """Over rows that hold several texts."""

    inputs = ("input_ids", "position_ids", "segments")

    def forward(self, input_ids: Tensor, position_ids: Tensor, segments: Tensor) -> Tensor:
        """States (b, length, width) of rows (b, length); a token sees those with its number in `segments`."""
        assert self.family.mask is not None, "a family without a mask of its own is never packed"
        is_same_text = segments[:, None, :, None] == segments[:, None, None, :]
        output = self.transformer(
            input_ids=input_ids,
            position_ids=self.positions(input_ids, position_ids),
            attention_mask=_added_to_scores(self.family.mask(is_same_text, self.config)),
        )
        states: Tensor = output.last_hidden_state
        return states


class EndToEndNetwork(Network):
    """Over texts that stand one after the other, without padding.

    Args:
        attend: attention over such texts.
    """

    inputs = ("input_ids", "position_ids", "boundaries")

    def __init__(self, transformer: Any, attend: PackedAttention) -> None:
        super().__init__(transformer)
        self._attend = attend
        attend_end_to_end(transformer)

    def forward(self, input_ids: Tensor, position_ids: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        """States (1, tokens, width) of texts (1, tokens) of which text i ends where `boundaries[i + 1]` says."""
        output = self.transformer(
            input_ids=input_ids,
            position_ids=self.positions(input_ids, position_ids),
            cu_seq_lens_q=boundaries,
            max_length_q=longest,
            attend=self._attend,
        )
        states: Tensor = output.last_hidden_state
        return states


class ScoringNetwork(Network):
    """A cross-encoder over padded pairs."""

    inputs = ("input_ids", "attention_mask", "token_type_ids")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits float32 (b, 1) of padded pairs (b, length)."""
        output = self.transformer(
            input_ids=input_ids, attention_mask=self.mask(attention_mask), token_type_ids=token_type_ids
        )
        logits: Tensor = output.logits.float()
        return logits


def _added_to_scores(sees: Any) -> Any:
    """A mask, or one for each kind of layers, as numbers that are added to the scores of attention."""
    if isinstance(sees, dict):
        return {kind: _added_to_scores(mask) for kind, mask in sees.items()}
    return torch.where(sees, 0.0, _NEVER)
