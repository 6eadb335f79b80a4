"""A collector that looks in a thread of its own and serves what it found last, so that a scrape waits for no database."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

LOOK_SECONDS = 15.0
_SHARE_OF_TIME = 0.05
"""Of a connection's time that looks may take: after a slow one the next waits the longer."""
_JOIN_SECONDS = 5.0
"""That the end waits for a look that is under way; its thread does not keep the process."""


class LookingCollector(Collector, ABC):
    """Serves what the last look found; nothing before the first."""

    def __init__(self) -> None:
        self._found: Sequence[Metric] = ()
        self._ended = threading.Event()

    @abstractmethod
    def find(self) -> Sequence[Metric]:
        """What there is to tell now; what cannot be found is told as that, and raises nothing."""

    def look(self) -> None:
        """Look now, for the scrapes to come."""
        self._found = self.find()

    def collect(self) -> Iterable[Metric]:
        """What the last look found."""
        return self._found

    @contextmanager
    def keeping_up(self) -> Iterator[None]:
        """Look now and then until the block ends."""
        thread = threading.Thread(target=self._go_on, name=f"looks of {type(self).__name__}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(_JOIN_SECONDS)

    def _go_on(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            started = time.monotonic()
            self.look()
            pause = max(LOOK_SECONDS, (time.monotonic() - started) / _SHARE_OF_TIME)
