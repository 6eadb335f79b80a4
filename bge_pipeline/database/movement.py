"""When something was last done to the table, a vector written by whoever it was, a phase, or the end of a pause; and how much
all processes have done."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.journal import LATE_ENTRIES, PAUSE, RUN, WORKER, journal_is_readable
from bge_pipeline.database.target import TargetTable

_LAST_ACT = "SELECT at FROM {journal} WHERE act NOT IN (:pause, :worker, :run) ORDER BY number DESC LIMIT 1"
# A worker's entry is renewed while it lives: it moved as long before as it says, and never after its time. One that an earlier
# version wrote says nothing.
_MOVED = """
SELECT extract(epoch FROM clock_timestamp() - greatest(CAST(:last_act AS timestamptz),
  max(at - make_interval(secs => coalesce((facts->>'still_seconds')::float, 0)))))::float
FROM {journal} WHERE act = :worker AND at > coalesce(CAST(:last_act AS timestamptz), '-infinity')
"""
_NEWEST = "SELECT coalesce(max(number), 0) FROM {journal}"
# One sum of the entries up to a number that have ended, without a number, and each of the others.
_DONE = """
SELECT CASE WHEN number <= :settled AND coalesce((facts->>'ended')::boolean, false) THEN NULL ELSE number END AS number,
       coalesce(sum((facts->>'rows')::bigint), 0)::bigint AS rows,
       coalesce(sum((facts->>'in_page')::bigint), 0)::bigint AS in_page,
       coalesce(sum((facts->>'tokens')::bigint), 0)::bigint AS tokens
FROM {journal} WHERE act = :worker AND (number > :after OR number = ANY (CAST(:open AS bigint[]))) GROUP BY 1
"""
_KINDS = ("rows", "in_page", "tokens")


def seconds_since_movement(connection: Connection, target: TargetTable) -> float | None:
    """By the server's clock; None where there is no journal, or none that this role may read, and so nothing to say."""
    if not journal_is_readable(connection, target):
        return None
    beside = {"pause": PAUSE, "worker": WORKER, "run": RUN}
    last_act = connection.execute(target.sql(_LAST_ACT), beside).scalar_one_or_none()
    seconds = connection.execute(target.sql(_MOVED), {"worker": WORKER, "last_act": last_act}).scalar_one()
    return float(seconds) if seconds is not None else None


class DoneReader:
    """Adds up what all processes have done, again and again; after the first look only what may have changed since."""

    def __init__(self, target: TargetTable) -> None:
        self._target = target
        self._newest, self._settled = 0, 0
        self._open: list[int] = []
        self._ended = dict.fromkeys(_KINDS, 0)

    def look(self, connection: Connection) -> dict[str, int]:
        """`rows`, `in_page` and `tokens` of all processes that ever told of themselves; none of it without a journal."""
        if not journal_is_readable(connection, self._target):
            self._begin_anew()
            return {}
        newest = connection.execute(self._target.sql(_NEWEST)).scalar_one()
        if newest < self._newest:
            # A journal that was dropped and made again counts from one.
            self._begin_anew()
        settled = newest - LATE_ENTRIES
        values = {"worker": WORKER, "settled": settled, "after": self._settled, "open": self._open}
        entries = connection.execute(self._target.sql(_DONE), values).all()
        self._newest, self._settled = newest, settled
        self._open = [entry.number for entry in entries if entry.number is not None and entry.number <= settled]
        found = dict(self._ended)
        for entry in entries:
            for kind in _KINDS:
                found[kind] += getattr(entry, kind)
                if entry.number is None:
                    self._ended[kind] += getattr(entry, kind)
        return found

    def _begin_anew(self) -> None:
        self._newest, self._settled, self._open, self._ended = 0, 0, [], dict.fromkeys(_KINDS, 0)
