"""From the sums of a backfill to the metrics of the process, which go on growing from one backfill to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from bge_pipeline.telemetry import metrics

_STAGES = ("read", "tokenize", "encode", "write")


class Totals(Protocol):
    """The sums that grow while a backfill runs."""

    written: int
    in_page: int
    left_changed: int
    quarantined: int
    truncated: int
    tokens: int
    read_seconds: float
    tokenize_seconds: float
    encode_seconds: float
    write_seconds: float


class Meter:
    """Adds to the metrics by how much the totals of one backfill of one column have grown since the last look, at the latest
    when its block ends, however it does.

    Used by one thread. What the totals held before is another meter's.
    """

    def __init__(self, table: str, column: str, totals: Totals) -> None:
        counters = {
            "written": metrics.ROWS,
            "in_page": metrics.ROWS_IN_PAGE,
            "left_changed": metrics.ROWS_LEFT,
            "quarantined": metrics.ROWS_QUARANTINED,
            "truncated": metrics.TEXTS_TRUNCATED,
            "tokens": metrics.TOKENS,
        }
        self._counters = {name: counter.labels(table, column) for name, counter in counters.items()} | {
            f"{stage}_seconds": metrics.STAGE_SECONDS.labels(table, column, stage) for stage in _STAGES
        }
        self._totals = totals
        self._seen: dict[str, float] = {name: getattr(totals, name) for name in self._counters}

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.look()

    def look(self) -> None:
        """Take note of what was done since the last look."""
        for name, counter in self._counters.items():
            now = getattr(self._totals, name)
            counter.inc(now - self._seen[name])
            self._seen[name] = now


@contextmanager
def showing_progress(table: str) -> Iterator[Callable[[float, int], None]]:
    """Shows rows a second and rows left of the backfill that is the block, and nothing of it afterwards."""
    gauges = [gauge.labels(table) for gauge in (metrics.BACKFILL_ROWS_PER_SECOND, metrics.BACKFILL_ROWS_LEFT)]

    def show(rows_per_second: float, rows_left: int) -> None:
        for gauge, value in zip(gauges, (rows_per_second, rows_left), strict=True):
            gauge.set(value)

    try:
        yield show
    finally:
        show(0.0, 0)
