"""Limits of requests and tokens a minute: requests of all threads are spaced out evenly, and wait when the server says so."""

from __future__ import annotations

import threading
import time
from functools import lru_cache

from bge_pipeline.forked import in_forked_child

_CATCH_UP_SECONDS = 1.0
"""Time that was not used up and may be made up for."""


class RateLimits:
    """When the next request may go. Thread-safe.

    Args:
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._seconds_a_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._lock = threading.Lock()
        self._due = time.monotonic()
        self._held_until = float("-inf")

    def seconds_to_wait(self, tokens: int) -> float:
        """Take the next place for a request of so many tokens; how long to wait until its time comes."""
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - _CATCH_UP_SECONDS)
            starts = max(now, self._due, self._held_until)
            self._due = max(self._due, self._held_until) + max(self._seconds_a_request, tokens * self._seconds_a_token)
            return starts - now

    def is_held(self) -> bool:
        """Whether no request may go now, not one either whose time has come: it takes another place."""
        with self._lock:
            return time.monotonic() < self._held_until

    def hold(self, seconds: float) -> None:
        """Let no request go before so many seconds from now: the server has asked for it."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)


@lru_cache(maxsize=16)
def shared_limits(
    url: str,  # noqa: ARG001 - the limits are an endpoint's
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
) -> RateLimits:
    """The limits of an endpoint, which every encoder of the process shares."""
    return RateLimits(requests_per_minute, tokens_per_minute)


in_forked_child(shared_limits.cache_clear)
