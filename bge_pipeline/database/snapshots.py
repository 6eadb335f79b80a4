"""Who keeps an old snapshot: until it is gone no row version can be cleared away, and updates find no room in their page."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.lock_holders import describe_sessions

# The sender of a standby with hot_standby_feedback keeps a snapshot without a transaction, and renews it.
_SESSIONS = """
SELECT a.pid FROM pg_stat_activity a
WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
  AND a.datname = current_database() AND NOT (a.backend_type = 'walsender' AND a.xact_start IS NULL)
  AND COALESCE(a.xact_start, a.backend_start) < clock_timestamp() - make_interval(secs => :seconds)
  AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
"""
_SENDERS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender' AND age(backend_xmin) > :transactions"
_PREPARED = """
SELECT format('prepared transaction %L of role %s, since %s', gid, owner, to_char(prepared, 'YYYY-MM-DD HH24:MI:SS TZ'))
FROM pg_prepared_xacts
WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => :seconds)
"""
_SLOTS = """
SELECT format('replication slot %L, which keeps row versions for a standby', slot_name) FROM pg_replication_slots
WHERE xmin IS NOT NULL AND age(xmin) > :transactions
"""
_TRANSACTIONS = 1_000
"""By which a standby or its slot lags: their snapshots have no clock."""


OLD_SECONDS = 5.0
"""From which on a snapshot is called old."""


def old_snapshots(connection: Connection) -> tuple[str, ...]:
    """Who keeps one, in words: `old_transactions`, then standbys and replication slots whose own is old."""
    values = {"transactions": _TRANSACTIONS}
    senders = describe_sessions(connection, connection.execute(text(_SENDERS), values).scalars().all())
    slots = connection.execute(text(_SLOTS), values).scalars().all()
    return tuple(dict.fromkeys((*old_transactions(connection), *map(str, senders), *slots)))


def old_transactions(connection: Connection) -> tuple[str, ...]:
    """Sessions, oldest first, and prepared transactions that have kept one for OLD_SECONDS, in words.

    For these, and for no standby, the build of an index beside live traffic waits.
    """
    values = {"seconds": OLD_SECONDS}
    sessions = describe_sessions(connection, connection.execute(text(_SESSIONS), values).scalars().all())
    return (*map(str, sessions), *connection.execute(text(_PREPARED), values).scalars().all())
