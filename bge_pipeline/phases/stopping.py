"""A request to stop, and whether anybody heeds it at the moment: whoever asks can else interrupt."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest(threading.Event):
    """Set by whoever wants the end; `is_heeded` while something ends soon by itself once it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_heeded = False

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """The block ends soon after the event is set."""
        self.is_heeded = True
        try:
            yield
        finally:
            self.is_heeded = False
