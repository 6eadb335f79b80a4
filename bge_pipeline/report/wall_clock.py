"""When acts ended, and how long those that overlap took together: on the wall, each moment counted once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timezone

Ended = tuple[str, float]
"""When an act ended, as PostgreSQL writes a timestamptz, and how many seconds it took."""


# Python 3.10 takes neither a fraction of any length nor an offset of hours alone.
_MOMENT = re.compile(r"(\S+)[ T]([\d:]+)(?:\.(\d+))?([+-]\d\d)(?::(\d\d))?")


def wall_seconds(acts: Iterable[Ended]) -> float:
    """Seconds in which at least one of the acts was under way."""
    spans = sorted((end - seconds, end) for at, seconds in acts for end in [moment(at).timestamp()])
    total, latest = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, latest))
        latest = max(latest, end)
    return total


def moment(at: str) -> datetime:
    """The moment, in UTC, that PostgreSQL writes as a timestamptz of the session's zone."""
    found = _MOMENT.fullmatch(at)
    if found is None:
        raise ValueError(f"expected a timestamptz as PostgreSQL writes it, got {at!r}")
    day, time, fraction, hours, minutes = found.groups()
    read = datetime.fromisoformat(f"{day}T{time}.{(fraction or '')[:6]:0<6}{hours}:{minutes or '00'}")
    return read.astimezone(timezone.utc)
