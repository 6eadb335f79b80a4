"""Standard output and error as people and pipes get them. What is told of phases is in phase_line.py."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
_WIDTH_WITHOUT_TERMINAL = 160
"""Of lines in a file or a CI's log, which have no width of their own."""
_PADDING = re.compile(r" +(?=\n)")


class PlainInPipes(Console):
    """A console that writes no spaces at the ends of lines where no terminal is behind it.

    A table fills its last column up, which in a pipe or a file is what `cut`, `diff` and an editor stumble over.
    """

    @property
    def file(self) -> IO[str]:
        """Where it writes: the stream of this moment, as Console has it."""
        stream = super().file
        return stream if stream.isatty() else cast("IO[str]", _WithoutPadding(stream))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


class _WithoutPadding:
    """A stream on which lines end with their last letter."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, written: str) -> int:
        return self._stream.write(_PADDING.sub("", written))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_console(*, on_stderr: bool) -> Console:
    """A console on standard error or output: as wide as its terminal or COLUMNS say, and wide where neither does."""
    knows_width = (sys.stderr if on_stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if knows_width else _WIDTH_WITHOUT_TERMINAL
    return PlainInPipes(stderr=on_stderr, highlight=on_stderr, width=width)


stderr = make_console(on_stderr=True)
"""Progress and notices; facts go to standard output, where they can be piped."""


class Throttle:
    """Lets one call through per interval, and the first."""

    def __init__(self, seconds: float = LOG_INTERVAL_SECONDS) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def passes(self) -> bool:
        """Whether the interval has gone by since the last call that passed."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


@contextmanager
def loading_progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar for rows loaded into the demo's table."""
    if not stderr.is_terminal:
        throttle = Throttle()
        yield lambda rows: logger.info("%d rows loaded", rows) if throttle.passes() else None
        return
    with Progress(TextColumn("[bold]load"), BarColumn(), MofNCompleteColumn(), console=stderr) as progress:
        task = progress.add_task("load", total=total)
        yield lambda rows: progress.update(task, completed=rows)
