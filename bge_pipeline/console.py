"""What a person sees on the terminal: progress bars, or log lines where there is no terminal; and commands to type there."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.duration import duration
from bge_pipeline.phases.backfill import BackfillProgress

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
_WIDTH_WITHOUT_TERMINAL = 160
"""Of lines in a file or a CI's log, which have no width of their own."""


_CONTROL = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_CONTROL |= dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
"""Characters by which a terminal is told to do something, or to show letters in another order, as what is shown for them."""


def inert(text: str) -> str:
    """Text of a row or a name, as a terminal may print it."""
    return text.translate(_CONTROL)


class _InertConsole(Console):
    """A console that sends a terminal no control character but its own: a row's text may hold any."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of what is to be printed."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=inert(part.text))


def make_console(*, on_stderr: bool) -> Console:
    """A console on standard error or output: as wide as its terminal or COLUMNS say, and wide where neither does."""
    knows_width = (sys.stderr if on_stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if knows_width else _WIDTH_WITHOUT_TERMINAL
    return _InertConsole(stderr=on_stderr, highlight=on_stderr, width=width, markup=False, emoji=False)


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
def backfill_progress() -> Iterator[Callable[[BackfillProgress], None]]:
    """A bar with rate and time left; without a terminal, a log line every ten seconds."""
    if not stderr.is_terminal:
        yield _log_backfill(Throttle())
        return
    columns = (
        TextColumn("[bold]backfill"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[held]}", style="yellow", markup=False),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task("backfill", total=None, rate="-", held="")

        def show(state: BackfillProgress) -> None:
            rate = f"{state.rows_per_second:,.0f}"
            progress.update(task, total=state.total, completed=state.written, rate=rate, held=state.held or "")

        yield show


@contextmanager
def index_progress() -> Iterator[Callable[[BuildProgress], None]]:
    """The phase that the index build is in, with a bar where the server says how far it is."""
    if not stderr.is_terminal:
        yield _log_index(Throttle())
        return
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]index[/] {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task("starting", total=None)

        def show(state: BuildProgress) -> None:
            total = None if state.fraction is None else 1.0
            description = f"{state.phase}; waits for {state.waits_for}" if state.waits_for else state.phase
            progress.update(task, description=escape(description), total=total, completed=state.fraction or 0.0)

        yield show


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


def _log_backfill(throttle: Throttle) -> Callable[[BackfillProgress], None]:
    def log(state: BackfillProgress) -> None:
        if state.written >= state.total or throttle.passes():
            held = f"; held back: {state.held}" if state.held else ""
            logger.info(
                "backfill: %d of %d rows, %.0f rows/s%s%s",
                state.written,
                state.total,
                state.rows_per_second,
                f", {duration(state.seconds_left)} left" if state.seconds_left else "",
                held,
            )

    return log


def _log_index(throttle: Throttle) -> Callable[[BuildProgress], None]:
    def log(state: BuildProgress) -> None:
        if throttle.passes():
            done = "" if state.fraction is None else f", {state.fraction:.0%}"
            waits = f", waits for {state.waits_for}" if state.waits_for else ""
            logger.info("index: %s%s%s", state.phase, done, waits)

    return log
