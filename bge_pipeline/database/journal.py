"""The journal: what each phase did and when, whichever road ran it; who paused and resumed, and who works on the table
(`pause.py` and `heartbeat.py` read those).

For reports; no phase resumes from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.beside import TableBeside, create_words
from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable

JOURNAL_COLUMNS = frozenset({"number", "at", "act", "facts"})
"""What every version of the table has."""
PAUSE, RESUME, WORKER = "pause", "resume", "worker"
"""Acts that are no phase's."""

# A role that only asks for the status may lack the right to read it.
_READABLE = """
SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass(:name) AND c.relkind = 'r'
  AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery()) AND has_table_privilege(c.oid, 'SELECT'))
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
        return [target.sql(f"{create_words(unlogged=unlogged)} {{journal}} ({columns})")]
    if unlogged and found.may_become_unlogged:
        return [target.sql("ALTER TABLE {journal} SET UNLOGGED")]
    return []


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


def read_journal(connection: Connection, target: TargetTable, act: str | None = None) -> list[JournalEntry]:
    """The entries of all phases, or those of one act, oldest first.

    None where there is no journal, an unlogged one on a standby, or one that this role may not read.
    """
    if not journal_is_readable(connection, target):
        return []
    statement = target.sql(
        "SELECT act, at::text, facts FROM {journal} "
        "WHERE act = :act OR (:act IS NULL AND act NOT IN (:pause, :resume, :worker)) ORDER BY number"
    )
    values = {"act": act, "pause": PAUSE, "resume": RESUME, "worker": WORKER}
    return [JournalEntry(row.act, row.at, row.facts) for row in connection.execute(statement, values)]


def server_seconds(connection: Connection) -> float:
    """The server's clock, in seconds: the only one that all who write a journal share."""
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
