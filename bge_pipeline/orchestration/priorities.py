"""Which queued run goes first: Dagster starts those of a higher priority before others, however long these have waited.

A person gives a backfill another one by the tag `dagster/priority` when launching it.
"""

PRIORITY_TAG = "dagster/priority"

AT_ONCE = 20
"""Looks, pauses, the way back: seconds of work, for which nobody should wait behind thousands of partitions."""
FRESH = 10
"""What search misses until it is done, and the steps of a migration: they come after the backfill, or do not wait for it."""
RERUN = 1
"""A partition that failed goes before those that have not begun, so that what is wrong shows early."""


def priority(value: int) -> dict[str, str]:
    """The tag for a run or a job."""
    return {PRIORITY_TAG: str(value)}
