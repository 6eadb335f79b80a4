"""How far standbys and subscribers are behind the server's log, in bytes: what streams, and what a slot keeps for one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

# A role without pg_read_all_stats sees the senders' processes, and NULL in every other column; slots are seen by all.
# A slot that a sender uses is the same standby: what it has replayed says more than what the slot still keeps for it.
# For a slot that is lost the server keeps no log any more: it never catches up.
_LAGS = """
SELECT COALESCE(NULLIF(r.application_name, ''), 'walreceiver') AS name, 'standby' AS kind, true AS is_connected,
       pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn)::bigint AS bytes
FROM pg_stat_replication r WHERE r.replay_lsn IS NOT NULL
UNION ALL
SELECT s.slot_name::text, 'replication slot', s.active,
       pg_wal_lsn_diff(pg_current_wal_lsn(), COALESCE(s.confirmed_flush_lsn, s.restart_lsn))::bigint
FROM pg_replication_slots s
WHERE COALESCE(s.confirmed_flush_lsn, s.restart_lsn) IS NOT NULL AND NOT s.temporary
  AND s.wal_status IS DISTINCT FROM 'lost'
  AND NOT EXISTS (SELECT FROM pg_stat_replication r WHERE r.pid = s.active_pid AND r.replay_lsn IS NOT NULL)
ORDER BY 4 DESC
"""
_HIDDEN = """
SELECT count(*) FROM pg_stat_replication r
WHERE r.state IS NULL AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid)
"""


@dataclass(frozen=True)
class ReplicationLag:
    """How far one standby or subscriber is behind.

    Attributes:
        name: its application_name, or the slot's name.
        kind: `standby` or `replication slot`.
        is_connected: False for a slot that nobody reads now, which keeps the log all the same.
        bytes: of the server's log that it has not replayed, or has not confirmed.
    """

    name: str
    kind: str
    is_connected: bool
    bytes: int

    def __str__(self) -> str:
        nobody = "" if self.is_connected else ", which nobody reads now,"
        return f"{self.kind} {self.name!r}{nobody} lags {self.bytes / 2**20:,.0f} MB behind"


def find_lags(connection: Connection) -> list[ReplicationLag]:
    """Every standby and slot that can be seen, the one farthest behind first; none where nothing is replicated."""
    return [
        ReplicationLag(row.name, row.kind, row.is_connected, max(0, row.bytes))
        for row in connection.execute(text(_LAGS))
    ]


def count_hidden_standbys(connection: Connection) -> int:
    """Standbys whose place in the log this role may not see, and that use no slot which would tell it."""
    return int(connection.execute(text(_HIDDEN)).scalar_one())
