"""What a phase tells of itself where nobody listens."""

from __future__ import annotations


def untold(_step: str) -> None:
    """For `on_step`, where nobody wants to know what begins."""
