"""Progress of long steps: throttled lines in the Dagster log, and a listener for whoever runs a job in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import dagster as dg

from bge_pipeline.console import Throttle
from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.duration import about, duration
from bge_pipeline.phases.backfill import BackfillProgress

PROGRESS_TAG = "progress"


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


@dataclass(frozen=True)
class Overall:
    """How far the whole backfill is as one of its partitions begins.

    Attributes:
        done: partitions that are materialized.
        partitions: how many there are.
        rows_to_come: about how many rows are in the others, that of the partition at hand left out.
    """

    done: int
    partitions: int
    rows_to_come: int


def log_backfill(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, step: str, overall: Overall | None = None
) -> Callable[[BackfillProgress], None]:
    """A callback for `backfill` that every ten seconds writes to the Dagster log, and to the tag `progress` of the run.

    A tag is replaced, where metadata of an event would become one more event each time; the UI shows it beside the run.
    """
    throttle, listener = Throttle(), _listener.get()

    def report(progress: BackfillProgress) -> None:
        if listener is not None:
            listener(StepProgress(step, backfill=progress))
        if throttle.passes():
            told = told_progress(progress, overall)
            context.log.info(told)
            context.instance.add_run_tags(context.run.run_id, {PROGRESS_TAG: told})

    return report


def told_progress(progress: BackfillProgress, overall: Overall | None) -> str:
    """Rows, rate and time left, of what is at hand and of all partitions."""
    left = progress.seconds_left
    words = [f"{progress.written:,} of {progress.total:,} rows, {progress.rows_per_second:,.0f} rows/s"]
    if left is not None:
        words.append(f"{duration(left)} left")
    if overall is not None:
        words.append(f"{overall.done} of {overall.partitions} partitions done")
        if left is not None:
            in_all = left + overall.rows_to_come / progress.rows_per_second
            words.append(f"{about(in_all)} left in all")
    return ", ".join(words) + (f"; held back: {progress.held}" if progress.held else "")


def log_step(log: dg.DagsterLogManager) -> Callable[[str], None]:
    """A callback for `on_step` of a phase that writes to the Dagster log."""
    return lambda step: log.info("%s: begins", step)


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
