"""Measuring for as long as there is time, and once at least."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def in_time(items: Iterable[Item], deadline: float | None) -> Iterator[Item]:
    """The items, one at least, until the deadline has passed when the next one is asked for.

    Args:
        items: what to go through.
        deadline: on the clock of `time.monotonic`; None: there is none.
    """
    for number, item in enumerate(items):
        if number and deadline is not None and time.monotonic() > deadline:
            return
        yield item


def deadline_in(seconds: float | None) -> float | None:
    """The deadline so many seconds from now; None for None."""
    return None if seconds is None else time.monotonic() + seconds
