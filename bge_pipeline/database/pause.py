"""The pause flag of a table: entries of its journal, which every run on any machine looks at between two batches.

The latest entry counts, in the order of their numbers, so that all who look agree. An entry belongs to no session: it
stands until somebody resumes, also where the machine that wrote it is gone. Whoever may fill the column may write and read
the journal, and so pause and resume. Where the journal is UNLOGGED, a crash of the server forgets the pause.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.journal import LATE_ENTRIES, PAUSE, RESUME, journal_is_readable
from bge_pipeline.database.target import TargetTable

_LATEST = """
SELECT newest.number AS newest, latest.number, latest.act, latest.at, latest.facts
FROM (SELECT max(number) AS number FROM {journal}) newest
LEFT JOIN LATERAL (
  SELECT number, act, to_char(at, 'YYYY-MM-DD HH24:MI:SS TZ') AS at, facts FROM {journal}
  WHERE act IN (:pause, :resume) AND number > :after ORDER BY number DESC LIMIT 1
) latest ON true
"""


@dataclass(frozen=True)
class PauseEntry:
    """The latest word on whether runs may write.

    Attributes:
        paused: False after a resume.
        by: who said it: user and machine, or the Dagster run.
        at: when, by the server's clock.
        reason: in the words of whoever paused, if they gave one.
        number: of the journal's entry.
    """

    paused: bool
    by: str
    at: str
    reason: str | None
    number: int

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{'paused' if self.paused else 'resumed'} by {self.by} at {self.at}{why}"


class PauseReader:
    """Looks at the flag again and again; after the first look only at what the journal has got since."""

    def __init__(self, target: TargetTable) -> None:
        self._target = target
        self._newest = 0
        self._latest: PauseEntry | None = None

    def look(self, connection: Connection) -> PauseEntry | None:
        """The latest pause or resume; None where there never was one, or no journal that this role may read."""
        if not journal_is_readable(connection, self._target):
            self._newest, self._latest = 0, None
            return None
        values = {"pause": PAUSE, "resume": RESUME, "after": self._newest - LATE_ENTRIES}
        row = connection.execute(self._target.sql(_LATEST), values).one()
        if row.newest is None or row.newest < self._newest:
            # A journal that was dropped and made again counts from one.
            self._latest = None
        self._newest = row.newest or 0
        if row.number is not None and (self._latest is None or row.number > self._latest.number):
            self._latest = PauseEntry(
                row.act == PAUSE, row.facts.get("by", "somebody"), row.at, row.facts.get("reason"), row.number
            )
        return self._latest


def read_pause(connection: Connection, target: TargetTable) -> PauseEntry | None:
    """The pause that stands now; None where runs may write."""
    latest = PauseReader(target).look(connection)
    return latest if latest is not None and latest.paused else None
