"""Who keeps an old snapshot: until it is gone no row version can be cleared away, and updates find no room in their page."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.lock_holders import describe_sessions

_SESSIONS = """
SELECT a.pid FROM pg_stat_activity a
WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
  AND (a.datname = current_database() OR a.backend_type = 'walsender')
  AND COALESCE(a.xact_start, a.backend_start) < clock_timestamp() - make_interval(secs => :seconds)
  AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
"""
_OTHERS = """
SELECT format('prepared transaction %L of role %s, since %s', gid, owner, to_char(prepared, 'YYYY-MM-DD HH24:MI:SS TZ'))
FROM pg_prepared_xacts
WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => :seconds)
UNION ALL
SELECT format('replication slot %L, which keeps row versions for a standby', slot_name) FROM pg_replication_slots
WHERE xmin IS NOT NULL AND age(xmin) > :transactions
"""
_TRANSACTIONS = 1_000
"""By which a slot lags: it has no clock."""


OLD_SECONDS = 5.0
"""From which on a snapshot is called old."""


def old_snapshots(connection: Connection) -> tuple[str, ...]:
    """Sessions, prepared transactions and replication slots that have kept one for OLD_SECONDS, oldest first, in words."""
    values = {"seconds": OLD_SECONDS}
    sessions = describe_sessions(connection, connection.execute(text(_SESSIONS), values).scalars().all())
    others = connection.execute(text(_OTHERS), values | {"transactions": _TRANSACTIONS}).scalars().all()
    return (*map(str, sessions), *others)
