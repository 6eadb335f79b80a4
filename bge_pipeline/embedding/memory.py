"""Memory of devices: how much goes through a network at once, and how a library says that there is none left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bge_pipeline.errors import OutOfMemory

MORE_MEMORY = "free memory on the device, or choose another with EMBEDDING_DEVICE"
"""The next step of whoever ran out of it."""

_CPU_TOKENS = 1_024
_ACCELERATOR_TOKENS = 65_536
_FEWEST_TOKENS = 512
_SHARE_OF_FREE_MEMORY = 0.5


def tokens_that_fit(device: str, config: Any) -> int:
    """Most padded tokens in one forward pass, by the memory that is free now.

    Args:
        device: as PyTorch names it.
        config: the configuration of transformers.
    """
    import torch

    if device.startswith("cpu"):
        return _CPU_TOKENS
    if not device.startswith("cuda"):
        return _ACCELERATOR_TOKENS // 4
    free, _ = torch.cuda.mem_get_info(device)
    # Live at the peak of a layer: the feed-forward's two intermediates and about eight hidden states. Some families have
    # another name for the intermediates, which are four times the hidden states as a rule.
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    bytes_per_token = 2 * (2 * intermediate + 8 * config.hidden_size)
    budget = int(free * _SHARE_OF_FREE_MEMORY / bytes_per_token)
    return max(_FEWEST_TOKENS, min(budget, _ACCELERATOR_TOKENS))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch's device or the host had no memory left; libraries of CUDA say so in words of their own."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    says = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in says or "status_alloc_failed" in says or ("alloc" in says and "memory" in says)
    )


@contextmanager
def short_of_memory(problem: str) -> Iterator[None]:
    """Raise OutOfMemory for whatever says within the block that there is none."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(problem, next_step=MORE_MEMORY) from error
