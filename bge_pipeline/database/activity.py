"""What the server itself tells of a table: updates, sessions that wait for a lock on it now, an index that is being built."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.target import TargetTable

# Of a partitioned table the partitions are updated, indexed and locked. They are looked up without the locks that
# pg_partition_tree takes: whoever looks at locks must not wait for one.
_TREE = """
WITH RECURSIVE tree AS (
  SELECT CAST(:name AS regclass)::oid AS oid
  UNION ALL
  SELECT c.oid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
"""
_ACTIVITY = f"""
{_TREE}
SELECT counted.updates, counted.hot_updates, waiting.sessions, waiting.longest
FROM (
  SELECT sum(coalesce(pg_stat_get_tuples_updated(oid), 0))::bigint AS updates,
         sum(coalesce(pg_stat_get_tuples_hot_updated(oid), 0))::bigint AS hot_updates FROM tree
) counted, (
  SELECT count(*) AS sessions, coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float AS longest
  FROM pg_locks l JOIN pg_database d ON d.oid = l.database
  WHERE NOT l.granted AND l.relation IN (SELECT oid FROM tree) AND d.datname = current_database()
) waiting
"""
_INDEXED = f"""
{_TREE}
SELECT EXISTS (
  SELECT FROM pg_stat_progress_create_index WHERE relid IN (SELECT oid FROM tree) AND datname = current_database())
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
    return bool(connection.execute(text(_INDEXED), {"name": str(target)}).scalar_one())
