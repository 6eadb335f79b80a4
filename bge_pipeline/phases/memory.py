"""How much memory this process has had, on whatever system it runs."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int:
    """Largest resident size that this process has had; where the system does not keep it, the size now."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        used = psutil.Process().memory_info()
        return int(getattr(used, "peak_wset", used.rss))
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
