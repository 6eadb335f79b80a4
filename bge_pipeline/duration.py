"""Spans of time in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def about(seconds: float) -> str:
    """An estimate as people read it; what takes less than a second is not estimated closer."""
    return "under a second" if seconds < 1 else f"about {duration(seconds)}"
