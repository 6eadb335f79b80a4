"""Attention over texts that stand end to end: where a device has it, and how transformers is made to call it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PackedAttention = Callable[["Tensor", "Tensor", "Tensor", "Tensor", int, float], "Tensor"]
"""(query, key, value, boundaries, longest, scale) -> output; tensors (tokens, heads, head size)."""

_NAME = "bge_pipeline_packed"


def packed_attention(device: str, precision: str) -> PackedAttention | None:
    """PyTorch's own (torch 2.10 and later, Ampere and later), None where it cannot be had."""
    import torch

    if not device.startswith("cuda") or precision == "fp32" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
        from transformers import AttentionInterface  # noqa: F401
    except ImportError:
        return None
    return _calling(varlen_attn)


def _calling(varlen_attn: Callable[..., Any]) -> PackedAttention:
    """PyTorch's function behind our signature; torch 2.10 knows no `scale` and divides by the root of the head's size."""
    takes_scale = "scale" in signature(varlen_attn).parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float) -> Tensor:
        options = {"scale": scale} if takes_scale else {}
        own = query.shape[-1] ** -0.5
        if not takes_scale and scale != own:
            query = query * (scale / own)
        output: Tensor = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, **options)
        return output

    return attend


def attend_end_to_end(transformer: Any) -> None:
    """Make the transformer call the `attend` that it is given, instead of an attention over padded texts."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def packed(
        _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        heads_last = (states[0].transpose(0, 1) for states in (query, key, value))
        output = kwargs["attend"](*heads_last, kwargs["cu_seq_lens_q"], kwargs["max_length_q"], kwargs["scaling"])
        return output.unsqueeze(0), None

    AttentionInterface.register(_NAME, packed)
    AttentionMaskInterface.register(_NAME, lambda *_args, **_kwargs: None)
    transformer.set_attn_implementation(_NAME)
