"""When something was last done to the table: a vector written by whoever it was, a phase, or the end of a pause."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.journal import PAUSE, WORKER, journal_is_readable
from bge_pipeline.database.target import TargetTable

# A worker's entry is renewed while it lives: it moved as long before as it says. One that an earlier version wrote says nothing.
_MOVED = """
SELECT extract(epoch FROM clock_timestamp() - max(at - make_interval(secs =>
  CASE WHEN act = :worker THEN coalesce((facts->>'still_seconds')::float, 0) ELSE 0 END)))::float
FROM {journal} WHERE act <> :pause
"""
_DONE = """
SELECT coalesce(sum((facts->>'rows')::bigint), 0)::bigint AS rows,
       coalesce(sum((facts->>'in_page')::bigint), 0)::bigint AS in_page,
       coalesce(sum((facts->>'tokens')::bigint), 0)::bigint AS tokens
FROM {journal} WHERE act = :worker
"""


def seconds_since_movement(connection: Connection, target: TargetTable) -> float | None:
    """By the server's clock; None where there is no journal, or none that this role may read, and so nothing to say."""
    if not journal_is_readable(connection, target):
        return None
    seconds = connection.execute(target.sql(_MOVED), {"worker": WORKER, "pause": PAUSE}).scalar_one()
    return float(seconds) if seconds is not None else None


def done_by_all(connection: Connection, target: TargetTable) -> dict[str, int]:
    """`rows`, `in_page` and `tokens` of all processes that ever told of themselves; none of it without a journal."""
    if not journal_is_readable(connection, target):
        return {}
    return dict(connection.execute(target.sql(_DONE), {"worker": WORKER}).one()._mapping)  # noqa: SLF001 - its public name
