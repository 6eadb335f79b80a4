"""The pace of a backfill: what a pass asks between two batches, whether it may go on, must wait, or has done enough."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.phases.stopping import StopRequest
from bge_pipeline.telemetry import metrics

logger = logging.getLogger(__name__)

PAUSED = "paused"
"""The reason of a pause."""
RATE = "rate"
"""The reason of a limit of rows a second, which holds for a moment after each batch: the log says once that it does."""
_LONGEST_WAIT_SECONDS = 1.0
"""Between two looks while something holds a backfill back, so that its progress shows it."""


class Brake(Protocol):
    """Something that may hold a backfill back between two batches.

    Attributes:
        reason: in a word, under which the seconds are summed.
        words: what it does now, in a short sentence; None while it leaves the backfill alone.
    """

    reason: str
    words: str | None

    def begin(self) -> None:
        """The backfill begins."""
        ...

    def end(self) -> None:
        """It has ended."""
        ...

    def seconds_left(self, rows: int, waited: float) -> float:
        """How much longer to wait before the next batch.

        Args:
            rows: that the batch wrote, the first time it is asked after a batch; then 0.
            waited: seconds since the batch was committed.
        """
        ...


class Allowance(Protocol):
    """What an encoder may still cost.

    Attributes:
        words: names the setting that says so.
    """

    words: str

    def reserve(self, tokens: TokenizedTexts) -> TokenizedTexts:
        """Set aside what the texts cost; returns the first of them, as many as can be paid for."""
        ...

    def forget_reserved(self) -> None:
        """Nothing is on its way any more."""
        ...


class Pace:
    """Decides between two batches; asked by the writer's thread, and by the reader's for what it may claim.

    Args:
        stop: set it to end after the batch in hand, at once where the pace is waiting.
        brakes: what may hold the backfill back; the first that does counts.
        goal_rows: rows to write before it is enough; None: all that wait.
        max_batch_rows: the most in one batch, so that a limit of few rows a second is kept evenly.
        allowance: what the encoder may cost; None: whatever it does.
    """

    def __init__(
        self,
        stop: threading.Event,
        brakes: Sequence[Brake] = (),
        *,
        goal_rows: int | None = None,
        max_batch_rows: int | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self._stop = stop
        self._allowance = allowance
        self._is_spent = False
        self._max_batch_rows = max_batch_rows
        self._brakes = brakes
        self._goal_rows = goal_rows
        self._written = self._claimed = 0
        self._held: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._beside: str | None = None
        self._report: Callable[[], None] = lambda: None

    @property
    def stopped(self) -> bool:
        """Whether somebody asked for the end."""
        return self._stop.is_set()

    @property
    def is_over(self) -> bool:
        """Whether somebody asked for the end, as many rows are written as were wanted, or more would cost too much."""
        return self.stopped or self._is_spent or (self._goal_rows is not None and self._written >= self._goal_rows)

    @property
    def spent(self) -> str | None:
        """The setting whose budget is spent, so that no more rows are encoded; None while there is some left."""
        return self._allowance.words if self._is_spent and self._allowance is not None else None

    @property
    def words(self) -> str | None:
        """What holds the backfill back now."""
        return "; ".join(words for words in (self._beside, *(brake.words for brake in self._brakes)) if words) or None

    @property
    def held_seconds(self) -> dict[str, float]:
        """Seconds that were waited so far, by reason."""
        return dict(self._held)

    @contextmanager
    def running(self, report: Callable[[], None]) -> Iterator[None]:
        """The backfill is the block; `report` is called every second while it waits."""
        self._report = report
        with ExitStack() as stack:
            if isinstance(self._stop, StopRequest):
                stack.enter_context(self._stop.heeding())
            for brake in self._brakes:
                brake.begin()
                stack.callback(brake.end)
                self._wait(0)
            yield
        if self._held:
            parts = (f"{reason} {seconds:,.1f} s" for reason, seconds in self._held.items())
            logger.info("the backfill was held back: %s", ", ".join(parts))

    def sleep(self, seconds: float) -> None:
        """Wait, unless somebody asks for the end."""
        self._stop.wait(seconds)

    def hold(self, reason: str, words: str) -> bool:
        """Wait a moment for what no brake watches, and show it; returns whether to go on: nobody asks for the end.

        Args:
            reason: in a word, under which the seconds are summed.
            words: what is waited for, in a short sentence.
        """
        if self._beside is not None:  # reader and writer wait for the same lock: it is shown and counted once
            self._stop.wait(_LONGEST_WAIT_SECONDS)
            return not self.stopped
        self._beside = words
        try:
            self._report()
            self._hold(reason, _LONGEST_WAIT_SECONDS)
        finally:
            self._beside = None
        return not self.stopped

    def batch_rows(self, rows: int) -> int:
        """Rows of a batch, where `rows` would be best."""
        return rows if self._max_batch_rows is None else min(rows, self._max_batch_rows)

    def begin_pass(self) -> None:
        """A pass begins: rows that were claimed and not written may be claimed again."""
        self._claimed = self._written
        if self._allowance is not None:
            self._allowance.forget_reserved()

    def claim(self, rows: int) -> int:
        """How many of the rows that were just read are wanted; 0: read no more."""
        if self.stopped:
            return 0
        if self._goal_rows is None:
            return rows
        wanted = max(0, min(rows, self._goal_rows - self._claimed))
        self._claimed += wanted
        return wanted

    def afford(self, tokens: TokenizedTexts) -> TokenizedTexts:
        """The first of the texts, as many as the allowance pays for; with fewer than all of them it is spent."""
        if self._allowance is None:
            return tokens
        paid = self._allowance.reserve(tokens)
        self._is_spent = len(paid) < len(tokens)
        return paid

    def between_batches(self, rows: int) -> None:
        """A batch that wrote so many rows is committed: return when the next may be."""
        self._written += rows
        if not self.is_over:
            self._wait(rows)

    def _wait(self, rows: int) -> None:
        committed_at = time.monotonic()
        while not self.stopped:
            brake, seconds = self._strongest(rows, time.monotonic() - committed_at)
            rows = 0
            self._tell()
            if brake is None:
                return
            self._report()
            self._hold(brake.reason, min(seconds, _LONGEST_WAIT_SECONDS))

    def _hold(self, reason: str, seconds: float) -> None:
        started = time.monotonic()
        self._stop.wait(seconds)
        waited = time.monotonic() - started
        self._held[reason] = self._held.get(reason, 0.0) + waited
        metrics.HELD_SECONDS.labels(reason).inc(waited)

    def _strongest(self, rows: int, waited: float) -> tuple[Brake | None, float]:
        left = [(brake, brake.seconds_left(rows, waited)) for brake in self._brakes]
        return next(((brake, seconds) for brake, seconds in left if seconds > 0), (None, 0.0))

    def _tell(self) -> None:
        """Say once in the log that a brake begins to hold, and once that it has let go."""
        for brake in self._brakes:
            if brake.words and brake.reason not in self._told:
                logger.log(_level(brake), "the backfill is held back: %s", brake.words)
                self._told[brake.reason] = brake.words
            elif not brake.words and brake.reason in self._told and brake.reason != RATE:
                seconds = self._held.get(brake.reason, 0.0)
                logger.log(
                    _level(brake),
                    "the backfill goes on: no longer %s; it waited %.1f s for it so far",
                    self._told.pop(brake.reason),
                    seconds,
                )


def _level(brake: Brake) -> int:
    """A pause is what a person who asked for warnings alone wants to see too."""
    return logging.WARNING if brake.reason == PAUSED else logging.INFO
