"""Locks that a statement over all partitions needs, and how many the server has room for.

Every statement that reads or alters the whole of a partitioned table locks each partition and each index of it at once, in memory
that is laid out as the server starts: https://www.postgresql.org/docs/current/runtime-config-locks.html
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.target import TargetTable

_OURS_OF_EACH = 2
"""Indexes that a migration adds to each partition for a time: the new vector index, and that of pending rows."""

_SESSIONS = 8
"""That may search all partitions at once where the server has the room that is asked for."""

# As the server counts: https://github.com/postgres/postgres/blob/REL_17_STABLE/src/backend/storage/lmgr/lock.c (NLOCKENTS).
_LOCKS = """
WITH tree AS (SELECT relid, isleaf FROM pg_partition_tree(CAST(:table AS regclass))),
backends AS (
  SELECT sum(current_setting(name, true)::int) AS number
  FROM unnest(ARRAY['max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', (
    SELECT name FROM pg_settings WHERE name IN ('autovacuum_worker_slots', 'autovacuum_max_workers')
    ORDER BY name DESC LIMIT 1)]) AS name)
SELECT (SELECT count(*) FROM tree) + (SELECT count(*) FROM pg_index WHERE indrelid IN (SELECT relid FROM tree)) AS now,
       (SELECT count(*) FROM tree WHERE isleaf) AS leaves,
       (SELECT number FROM backends) AS backends,
       current_setting('max_locks_per_transaction')::int AS each
"""


@dataclass(frozen=True)
class PartitionLocks:
    """Counts of locks.

    Attributes:
        now: of a statement over the whole table, which an application's search is too unless it names the partition.
        during: the same while a migration has its indexes there.
        room: for all sessions of the server together, at least.
        setting: `max_locks_per_transaction` with which a few sessions at once would have room.
    """

    now: int
    during: int
    room: int
    setting: int


def partition_locks(connection: Connection, target: TargetTable) -> PartitionLocks:
    """The counts of a partitioned table that no migration has begun with."""
    row = connection.execute(text(_LOCKS), {"table": str(target)}).one()
    during = row.now + _OURS_OF_EACH * row.leaves
    wanted = -(-during * _SESSIONS // row.backends)
    return PartitionLocks(row.now, during, row.each * row.backends, max(row.each, 1 << (wanted - 1).bit_length()))
