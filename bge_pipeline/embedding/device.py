"""Where the arithmetic happens and in which precision: what `auto` means on this machine, and what PyTorch can use."""

from __future__ import annotations

import ctypes
import platform
import sys

from bge_pipeline.embedding.families import Family
from bge_pipeline.embedding.processor import is_quicker_in_bf16
from bge_pipeline.errors import ConfigurationError


def resolve_device(device: str, backend: str = "auto") -> str:
    """`auto` as the device it means here; any other name as it stands.

    Asks the driver before PyTorch, whose import takes seconds that a machine without a GPU need not spend.
    """
    if device != "auto":
        return "cuda:0" if device == "cuda" else device
    if backend == "openvino" or not _may_have_accelerator():
        return "cpu"
    return best_device()


def best_device() -> str:
    """`cuda:0`, `mps` or `cpu`, whichever is the first that PyTorch can use here."""
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ConfigurationError unless PyTorch can use the device."""
    import torch

    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"EMBEDDING_DEVICE={device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here",
            next_step="set EMBEDDING_DEVICE=auto, or install a PyTorch build for this machine's CUDA driver",
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("EMBEDDING_DEVICE=mps: PyTorch cannot use Metal on this machine")


def best_precision(device: str, family: Family) -> str:
    """What PyTorch computes in: on CPUs bf16 where they are quicker in it, else fp32; on accelerators half precision.

    Args:
        device: where.
        family: says which half precision it wants on CUDA; bf16 only where the GPU has it.
    """
    if device.startswith("cpu"):
        return "bf16" if is_quicker_in_bf16() else "fp32"
    import torch

    if (
        device.startswith("cuda")
        and family.half_on_cuda == "bf16"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return "bf16"
    return "fp16"


def _may_have_accelerator() -> bool:
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
