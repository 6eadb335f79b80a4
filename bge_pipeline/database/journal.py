"""The journal: what each phase did and when, whichever road ran it. For reports; nothing resumes from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable


@dataclass(frozen=True)
class JournalEntry:
    """One act on the table, with the figures that it returned."""

    act: str
    at: str
    facts: dict[str, Any]


def create_journal_statement(target: TargetTable) -> TextClause:
    """The statement that makes the journal's table."""
    return target.sql(
        "CREATE TABLE IF NOT EXISTS {journal} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
        "at timestamptz NOT NULL DEFAULT clock_timestamp(), act text NOT NULL, facts jsonb NOT NULL)"
    )


def record(database: Database, target: TargetTable, act: str, facts: Mapping[str, Any]) -> None:
    """Add an entry, in a transaction of its own; `facts` are plain values."""
    statement = target.sql("INSERT INTO {journal} (act, facts) VALUES (:act, CAST(:facts AS jsonb))")
    with database.transaction() as connection:
        connection.execute(statement, {"act": act, "facts": json.dumps(facts, default=str)})


def read_journal(connection: Connection, target: TargetTable, act: str | None = None) -> list[JournalEntry]:
    """The entries, or those of one act, oldest first; none where there is no journal."""
    exists = text("SELECT to_regclass(:name) IS NOT NULL")
    if not connection.execute(exists, {"name": target.journal}).scalar_one():
        return []
    statement = target.sql(
        "SELECT act, at::text, facts FROM {journal} WHERE act = :act OR :act IS NULL ORDER BY number"
    )
    return [JournalEntry(row.act, row.at, row.facts) for row in connection.execute(statement, {"act": act})]
