"""Progress of long steps: throttled lines in the Dagster log, and a listener for whoever runs a job in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import dagster as dg

from bge_pipeline.console import Throttle
from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.phases.backfill import BackfillProgress


@dataclass(frozen=True)
class StepProgress:
    """How far a step is.

    Attributes:
        step: name of the asset.
        partition: 1 for the first partition of this migration; 0 outside partitions.
        partitions: how many there are.
        backfill: of the partition under way, in `backfilled_embeddings`.
        index: of the build under way, in `swapped_index`.
    """

    step: str
    partition: int = 0
    partitions: int = 0
    backfill: BackfillProgress | None = None
    index: BuildProgress | None = None


Listener = Callable[[StepProgress], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell `listener` of every step that runs in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def log_backfill(log: dg.DagsterLogManager, step: str) -> Callable[[BackfillProgress], None]:
    """A callback for `backfill` that writes to the Dagster log every ten seconds."""
    throttle, listener = Throttle(), _listener.get()

    def report(progress: BackfillProgress) -> None:
        if listener is not None:
            listener(StepProgress(step, backfill=progress))
        if throttle.passes():
            held = f"; held back: {progress.held}" if progress.held else ""
            rate = progress.rows_per_second
            log.info("%d of %d rows embedded, %.0f rows/s%s", progress.written, progress.total, rate, held)

    return report


def log_index_build(log: dg.DagsterLogManager, step: str) -> Callable[[BuildProgress], None]:
    """A callback for the index build that writes to the Dagster log every ten seconds."""
    throttle, listener = Throttle(), _listener.get()

    def report(progress: BuildProgress) -> None:
        if listener is not None:
            listener(StepProgress(step, index=progress))
        if throttle.passes():
            done = "" if progress.fraction is None else f", {progress.fraction:.0%}"
            waits = f", waits for {progress.waits_for}" if progress.waits_for else ""
            log.info("index build: %s%s%s", progress.phase, done, waits)

    return report
