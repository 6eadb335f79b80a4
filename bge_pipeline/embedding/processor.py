"""What this machine's processor is quick at, as its instructions tell. Imports no library that runs a model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_TOLD_BY_LINUX = Path("/proc/cpuinfo")


@cache
def is_quicker_in_bf16() -> bool:
    """Whether matrices are multiplied faster in bf16 than in fp32; False where the system does not tell.

    With AMX they are. AVX512_BF16 alone is not enough: AMD's processors (Zen 4 and later) gain a factor of two by it,
    Intel's run it on one port where fp32 has two, and lose (`python -m benchmarks.encode` prints both peaks of a machine).
    Libraries that compute in bf16 on any AVX-512 imitate it.
    """
    told = _processor()
    flags = told.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and told.get("vendor_id") == "AuthenticAMD")


def _processor() -> dict[str, str]:
    """What Linux tells of the first processor; empty elsewhere."""
    try:
        first = _TOLD_BY_LINUX.read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
