"""Standard output and error as people and pipes get them, and commands to type there. What phases tell is in phase_line.py."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
_WIDTH_WITHOUT_TERMINAL = 160
"""Of lines in a file or a CI's log, which have no width of their own."""
_PADDING = re.compile(r" +(?=\n)")


class OurConsole(Console):
    """A console that sends no control character but its own, and no spaces at the ends of lines into a pipe or a file.

    A row's text may hold anything that a terminal obeys. A table fills its last column up, which is what `cut`, `diff` and an
    editor stumble over.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of what is to be printed."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=inert(part.text))

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


_CONTROL = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_CONTROL |= dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
"""Characters by which a terminal is told to do something, or to show letters in another order, as what is shown for them."""


def inert(text: str) -> str:
    """Text of a row or a name, as a terminal may print it."""
    return text.translate(_CONTROL)


def make_console(*, on_stderr: bool) -> Console:
    """A console on standard error or output: as wide as its terminal or COLUMNS say, and wide where neither does."""
    knows_width = (sys.stderr if on_stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if knows_width else _WIDTH_WITHOUT_TERMINAL
    return OurConsole(stderr=on_stderr, highlight=on_stderr, width=width, markup=False, emoji=False)


stderr = make_console(on_stderr=True)
"""Progress and notices; facts go to standard output, where they can be piped."""


_COMMAND = re.compile(r"\bbge-pipeline (?!demo\b)(?=[a-z])")


def commands_with(options: str, text: str) -> str:
    """The text with these global options in each command of this project that it names."""
    return _COMMAND.sub(lambda command: f"{command[0]}{options} ", text) if options else text


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
