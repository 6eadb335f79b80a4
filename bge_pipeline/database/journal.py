"""The journal: what each phase did and when, whichever road ran it; who paused and resumed, and who works on the table
(`pause.py` and `heartbeat.py` read those).

For reports; no phase resumes from it. Nothing is ever taken out of it, so that whoever looks at it again and again looks at its
latest entries: by their numbers, or by act and time, for which it has an index where a role that may make one has expanded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2.errors import LockNotAvailable
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import OperationalError

from bge_pipeline.database.beside import TableBeside, create_words
from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable

logger = logging.getLogger(__name__)

JOURNAL_COLUMNS = frozenset({"number", "at", "act", "facts"})
"""What every version of the table has."""
PAUSE, RESUME, WORKER, RUN = "pause", "resume", "worker", "run"
"""Acts that are no phase's."""
LATE_ENTRIES = 1_000
"""So many numbers back are looked at again: an entry is seen when it is committed, perhaps after one with a higher number."""

# A role that only asks for the status may lack the right to read it.
_READABLE = """
SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass(:name) AND c.relkind = 'r'
  AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery()) AND has_table_privilege(c.oid, 'SELECT'))
"""
_MAY_BE_INDEXED = """
SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass(:name) AND c.relkind = 'r'
  AND pg_has_role(c.relowner, 'USAGE') AND has_schema_privilege(c.relnamespace, 'CREATE')
  AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                  WHERE i.indrelid = c.oid AND x.relname = :index))
"""
_INDEX = "CREATE INDEX IF NOT EXISTS {journal_index} ON {journal} (act, at)"
_LAST_BACKFILL = """
SELECT act, at::text, facts FROM {journal}
WHERE act = 'backfill' AND (facts->>'rows')::bigint > 0 AND (CAST(:model AS text) IS NULL OR facts->>'model' = :model)
ORDER BY number DESC LIMIT 1
"""


@dataclass(frozen=True)
class JournalEntry:
    """One act on the table, with the figures that it returned."""

    act: str
    at: str
    facts: dict[str, Any]


def journal_statements(
    target: TargetTable, found: TableBeside | None = None, *, unlogged: bool = False
) -> list[TextClause]:
    """The statements that make the journal's table, or mend the one that is there; none where it is right."""
    if found is None:
        columns = (
            "number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
            "at timestamptz NOT NULL DEFAULT clock_timestamp(), act text NOT NULL, facts jsonb NOT NULL"
        )
        return [target.sql(f"{create_words(unlogged=unlogged)} {{journal}} ({columns})"), target.sql(_INDEX)]
    if unlogged and found.may_become_unlogged:
        return [target.sql("ALTER TABLE {journal} SET UNLOGGED")]
    return []


def index_journal(database: Database, target: TargetTable, *, lock_timeout_ms: int) -> None:
    """Give a journal that an earlier version made its index, where this role may; one that is locked gets it another time.

    Processes at work wait with their entries until it is made: a second for a million of them.
    """
    name = {"name": target.journal, "index": target.journal_index}
    try:
        with database.transaction() as connection:
            if not connection.execute(text(_MAY_BE_INDEXED), name).scalar_one():
                return
            connection.execute(text(f"SET LOCAL lock_timeout = '{lock_timeout_ms}ms'"))
            connection.execute(target.sql(_INDEX))
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        logger.info("%s is busy and gets its index another time", target.journal)
    else:
        logger.info("%s has got an index, %s", target.journal, target.journal_index)


def drop_journal_statement(target: TargetTable) -> TextClause:
    """The statement that removes the journal's table."""
    return target.sql("DROP TABLE IF EXISTS {journal}")


def record(database: Database, target: TargetTable, act: str, facts: Mapping[str, Any]) -> None:
    """Add an entry, in a transaction of its own; `facts` are plain values."""
    statement = target.sql("INSERT INTO {journal} (act, facts) VALUES (:act, CAST(:facts AS jsonb))")
    with database.transaction() as connection:
        connection.execute(statement, {"act": act, "facts": json.dumps(facts, default=str)})


def journal_is_readable(connection: Connection, target: TargetTable) -> bool:
    """Whether there is a journal, not an unlogged one on a standby, and this role may read it."""
    return bool(connection.execute(text(_READABLE), {"name": target.journal}).scalar_one())


def read_journal(
    connection: Connection, target: TargetTable, act: str | None = None, *, newest_seconds: float | None = None
) -> list[JournalEntry]:
    """The entries of all phases, or those of one act, oldest first; where it says so, those of the last `newest_seconds` alone.

    None where there is no journal, an unlogged one on a standby, or one that this role may not read.
    """
    if not journal_is_readable(connection, target):
        return []
    statement = target.sql(
        "SELECT act, at::text, facts FROM {journal} "
        "WHERE (act = :act OR (:act IS NULL AND act NOT IN (:pause, :resume, :worker, :run))) "
        "AND (CAST(:seconds AS float) IS NULL OR at >= now() - make_interval(secs => :seconds)) ORDER BY number"
    )
    beside = {"pause": PAUSE, "resume": RESUME, "worker": WORKER, "run": RUN}
    values = {"act": act, "seconds": newest_seconds} | beside
    return [JournalEntry(row.act, row.at, row.facts) for row in connection.execute(statement, values)]


def last_backfill(connection: Connection, target: TargetTable, model: str | None = None) -> JournalEntry | None:
    """The latest backfill that wrote a row, of that model or of any; None where no entry that this role may read tells of one."""
    if not journal_is_readable(connection, target):
        return None
    row = connection.execute(target.sql(_LAST_BACKFILL), {"model": model}).one_or_none()
    return JournalEntry(row.act, row.at, row.facts) if row is not None else None


def server_seconds(connection: Connection) -> float:
    """The server's clock, in seconds: the only one that all who write a journal share."""
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
