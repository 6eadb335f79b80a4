"""What the server itself tells of a table: updates, sessions that wait for a lock on it now, an index that is being built."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.target import TargetTable

_ACTIVITY = """
SELECT coalesce(pg_stat_get_tuples_updated(t.oid), 0) AS updates,
       coalesce(pg_stat_get_tuples_hot_updated(t.oid), 0) AS hot_updates,
       waiting.sessions, waiting.longest
FROM (SELECT CAST(:name AS regclass)::oid AS oid) t, LATERAL (
  SELECT count(*) AS sessions, coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float AS longest
  FROM pg_locks l JOIN pg_database d ON d.oid = l.database
  WHERE NOT l.granted AND l.relation = t.oid AND d.datname = current_database()) waiting
"""


@dataclass(frozen=True)
class Activity:
    """A look at the server's counters.

    Attributes:
        updates, hot_updates: of rows, since the server's statistics were last reset; HOT ones touched no index.
        waiting_sessions: that wait for a lock on the table now.
        longest_wait_seconds: of these.
    """

    updates: int
    hot_updates: int
    waiting_sessions: int
    longest_wait_seconds: float


def read_activity(connection: Connection, target: TargetTable) -> Activity:
    """What the server counts of the table."""
    row = connection.execute(text(_ACTIVITY), {"name": str(target)}).one()
    return Activity(row.updates, row.hot_updates, row.sessions, row.longest)


def is_being_indexed(connection: Connection, target: TargetTable) -> bool:
    """Whether an index of the table is built now, by whoever it is."""
    statement = text(
        "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index "
        "WHERE relid = CAST(:name AS regclass) AND datname = current_database())"
    )
    return bool(connection.execute(statement, {"name": str(target)}).scalar_one())
