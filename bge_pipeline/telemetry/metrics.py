"""The metrics of a process at work, for Prometheus. Those of the table are phases/table_metrics.py's."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

REGISTRY = CollectorRegistry()
"""Of this project alone: what other libraries of the process count is not served with it."""

_OF_COLUMN = ("table", "column")

ROWS = Counter("bge_pipeline_rows", "Rows whose vector this process has committed", _OF_COLUMN, registry=REGISTRY)
ROWS_IN_PAGE = Counter(
    "bge_pipeline_rows_in_page",
    "Of these, rows that stayed in their page, so that no index heard of them (HOT)",
    _OF_COLUMN,
    registry=REGISTRY,
)
ROWS_LEFT = Counter(
    "bge_pipeline_rows_left",
    "Rows that were edited or locked while their vector was made, and are still pending",
    _OF_COLUMN,
    registry=REGISTRY,
)
ROWS_QUARANTINED = Counter(
    "bge_pipeline_rows_quarantined", "Rows put aside because they cannot be embedded", _OF_COLUMN, registry=REGISTRY
)
TEXTS_TRUNCATED = Counter(
    "bge_pipeline_texts_truncated", "Texts longer than the model reads", _OF_COLUMN, registry=REGISTRY
)
TOKENS = Counter("bge_pipeline_tokens", "Tokens that the model has read", _OF_COLUMN, registry=REGISTRY)
STAGE_SECONDS = Counter(
    "bge_pipeline_stage_seconds",
    "Seconds that a stage was busy: read, tokenize, encode or write; they overlap",
    (*_OF_COLUMN, "stage"),
    registry=REGISTRY,
)
BACKFILL_ROWS_PER_SECOND = Gauge(
    "bge_pipeline_backfill_rows_per_second",
    "Rows a second of the backfill at hand, since it began",
    ("table",),
    registry=REGISTRY,
)
BACKFILL_ROWS_LEFT = Gauge(
    "bge_pipeline_backfill_rows_left",
    "Rows of the id range at hand that have yet to be written",
    ("table",),
    registry=REGISTRY,
)
COMMIT_SECONDS = Histogram(
    "bge_pipeline_commit_seconds",
    "For how long a commit held the locks of its rows",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    registry=REGISTRY,
)
HELD_SECONDS = Counter(
    "bge_pipeline_held_seconds",
    "Seconds that a backfill was held back: paused, rate, replication, search or snapshots",
    ("reason",),
    registry=REGISTRY,
)
LOCK_CONFLICTS = Counter(
    "bge_pipeline_lock_conflicts", "Attempts at a strong lock that gave up after LOCK_TIMEOUT_MS", registry=REGISTRY
)
LOCK_WAIT_SECONDS = Counter(
    "bge_pipeline_lock_wait_seconds", "Seconds in such attempts and in the pauses after them", registry=REGISTRY
)
RETRIES = Counter(
    "bge_pipeline_retries", "Batches read or written again after a passing error", ("stage",), registry=REGISTRY
)
ERRORS = Counter(
    "bge_pipeline_errors", "Phases that ended in an error, by its class", ("phase", "error"), registry=REGISTRY
)
PHASE_SECONDS = Histogram(
    "bge_pipeline_phase_seconds",
    "How long phases took, whether they ended well or not",
    ("phase",),
    buckets=(0.1, 1, 10, 60, 600, 3_600, 36_000),
    registry=REGISTRY,
)
PHASES_UNDER_WAY = Gauge("bge_pipeline_phases_under_way", "Phases that run now", ("phase",), registry=REGISTRY)

# Memory, CPU and open files of the process, as every Prometheus client names them.
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)
