"""Quarantine: rows that cannot be embedded, kept with their error, never blocking the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.reader import PendingBatch
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable


@dataclass(frozen=True)
class QuarantinedRow:
    """One row that could not be embedded, and why."""

    row_id: Any
    error: str
    quarantined_at: str


def create_quarantine_statements(target: TargetTable) -> list[TextClause]:
    """The statements that make an empty quarantine table; the id column takes its type from the target table."""
    return [
        target.sql(
            "CREATE TABLE IF NOT EXISTS {quarantine} AS SELECT {id} AS row_id, CAST('' AS text) AS error, "
            "now() AS quarantined_at FROM {table} WITH NO DATA"
        ),
        target.sql("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {quarantine} (row_id)", index=target.quarantine_key),
    ]


def copy_quarantine_statement(source: TargetTable, destination: TargetTable) -> TextClause:
    """The statement that puts the rows of one quarantine into another of the same table."""
    return source.sql(
        "INSERT INTO {destination} (row_id, error, quarantined_at) "
        "SELECT row_id, error, quarantined_at FROM {quarantine} ON CONFLICT DO NOTHING",
        destination=(destination.schema, destination.quarantine_table),
    )


def drop_quarantine_statement(target: TargetTable) -> TextClause:
    """The statement that removes the quarantine table."""
    return target.sql("DROP TABLE IF EXISTS {quarantine}")


def quarantine_row(connection: Connection, target: TargetTable, batch: PendingBatch, position: int, error: str) -> bool:
    """Put one row aside, unless it has changed since it was read or is locked; returns whether it was."""
    statement = target.sql(
        "INSERT INTO {quarantine} (row_id, error, quarantined_at) "
        # Locked, so that a change of the text comes before this, and is seen, or after it, and releases the row again.
        "SELECT {id}, :error, now() FROM {table} WHERE {id} = :row_id AND xmin::text::bigint = :version "
        "FOR NO KEY UPDATE SKIP LOCKED "
        "ON CONFLICT (row_id) DO UPDATE SET error = EXCLUDED.error, quarantined_at = EXCLUDED.quarantined_at"
    )
    values = {"row_id": batch.ids[position], "version": batch.versions[position], "error": error[:2_000]}
    return connection.execute(statement, values).rowcount == 1


def has_quarantine(connection: Connection, target: TargetTable) -> bool:
    """Whether the quarantine table is there."""
    name = quote(target.schema, target.quarantine_table)
    return connection.execute(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": name}).scalar_one() is True


def list_quarantined(connection: Connection, target: TargetTable, limit: int = 20) -> list[QuarantinedRow]:
    """The latest rows put aside."""
    statement = target.sql(
        "SELECT row_id::text, error, quarantined_at::text FROM {quarantine} ORDER BY quarantined_at DESC, row_id LIMIT :limit"
    )
    return [QuarantinedRow(*row) for row in connection.execute(statement, {"limit": limit})]


def release_all(connection: Connection, target: TargetTable) -> int:
    """Make every quarantined row pending again; returns how many."""
    return connection.execute(target.sql("DELETE FROM {quarantine}")).rowcount
