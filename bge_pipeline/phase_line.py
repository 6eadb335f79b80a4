"""Which phase is on and how far it is: one line with a bar on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from bge_pipeline.console import Throttle, stderr
from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.duration import duration
from bge_pipeline.phases.backfill import BackfillProgress

logger = logging.getLogger(__name__)

_BAR_WIDTH = 20
"""Columns of a terminal, so that the words beside the bar have room on a narrow one."""


class PhaseLine:
    """Says which phase is on; each, when it is over, how long it took.

    The methods are what phases take as `on_step`, `on_backfill`, `on_index` and `on_progress`. One phase is on at a time:
    another that begins ends it.
    """

    def __init__(self) -> None:
        self._phase: str | None = None
        self._began = 0.0

    def step(self, phase: str) -> None:
        """`phase` begins."""
        if phase != self._phase:
            self._end("done in")
            self._phase, self._began = phase, time.monotonic()
            self._begins(phase)

    def backfill(self, progress: BackfillProgress) -> None:
        """How far the backfill is."""
        self.step("backfill")
        self._backfill(progress)

    def index(self, progress: BuildProgress) -> None:
        """How far an index build is; of an index that has a name, in the phase that was begun for it."""
        if self._phase is None or not self._phase.startswith("index"):
            self.step("index")
        self._index(progress)

    def close(self, *, whole: bool) -> None:
        """No phase is on any more; `whole` says whether the last one came to its end."""
        self._end("done in" if whole else "stopped after")

    def _end(self, how: str) -> None:
        if self._phase is not None:
            self._ended(self._phase, f"{how} {duration(time.monotonic() - self._began)}")
        self._phase = None

    def _begins(self, phase: str) -> None:
        logger.info("%s: begins", phase)

    def _ended(self, phase: str, how: str) -> None:
        logger.info("%s: %s", phase, how)

    def _backfill(self, progress: BackfillProgress) -> None:
        raise NotImplementedError

    def _index(self, progress: BuildProgress) -> None:
        raise NotImplementedError


@contextmanager
def phase_line() -> Iterator[PhaseLine]:
    """A line for the phases of the block; what stands there at its end says how far it came."""
    if not stderr.is_terminal:
        with _closing(_LoggedLine()) as line:
            yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(_BAR_WIDTH),
        TextColumn("{task.fields[told]}", markup=False),
    )
    # Gone at the end: what stays is a line of text for each phase.
    with Progress(*columns, console=stderr, transient=True) as progress, _closing(_TerminalLine(progress)) as line:
        yield line


@contextmanager
def working(what: str) -> Iterator[None]:
    """On a terminal, a line that says what takes its time, gone when it is done."""
    if not stderr.is_terminal:
        yield
        return
    with stderr.status(Text(what)):
        yield


@contextmanager
def _closing(line: PhaseLine) -> Iterator[PhaseLine]:
    try:
        yield line
    except BaseException:
        line.close(whole=False)
        raise
    line.close(whole=True)


class _TerminalLine(PhaseLine):
    """A bar for the phase that is on, above it a line for each that is over."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._task: TaskID | None = None
        self._told = ""

    def _begins(self, phase: str) -> None:
        self._told = ""
        self._task = self._progress.add_task(phase, total=None, told="")

    def _ended(self, phase: str, how: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        told = f"{self._told}, {how}" if self._told else how
        self._progress.console.print(Text.assemble((f"{phase}: ", "bold"), told))

    def _backfill(self, progress: BackfillProgress) -> None:
        self._told = f"{progress.written:,} of {progress.total:,} rows, {progress.rows_per_second:,.0f} rows/s"
        left = f", {duration(progress.seconds_left)} left" if progress.seconds_left else ""
        held = f"; held back: {progress.held}" if progress.held else ""
        self._show(self._told + left + held, progress.written, progress.total)

    def _index(self, progress: BuildProgress) -> None:
        share = f" {progress.fraction:.0%}" if progress.fraction is not None else ""
        waits = f", waits for {progress.waits_for}" if progress.waits_for else ""
        self._show(f"{progress.phase}{share}{waits}", progress.fraction or 0, 1 if progress.fraction else None)

    def _show(self, told: str, completed: float, total: float | None) -> None:
        if self._task is not None:
            self._progress.update(self._task, told=told, completed=completed, total=total)


class _LoggedLine(PhaseLine):
    """A line as a phase begins, every ten seconds, and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()

    def _begins(self, phase: str) -> None:
        self._throttle = Throttle()
        super()._begins(phase)

    def _backfill(self, progress: BackfillProgress) -> None:
        if progress.written >= progress.total or self._throttle.passes():
            logger.info(
                "backfill: %d of %d rows, %.0f rows/s%s%s",
                progress.written,
                progress.total,
                progress.rows_per_second,
                f", {duration(progress.seconds_left)} left" if progress.seconds_left else "",
                f"; held back: {progress.held}" if progress.held else "",
            )

    def _index(self, progress: BuildProgress) -> None:
        if self._throttle.passes():
            done = "" if progress.fraction is None else f", {progress.fraction:.0%}"
            waits = f", waits for {progress.waits_for}" if progress.waits_for else ""
            logger.info("index: %s%s%s", progress.phase, done, waits)
