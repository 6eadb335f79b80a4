"""Rows in quarantine, for people: which there are and why, and letting them be tried again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.database.quarantine import QuarantinedRow, count_by_error, list_quarantined, release
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table


@dataclass(frozen=True)
class Quarantined:
    """What is in quarantine.

    Attributes:
        table: schema-qualified, quoted.
        rows: how many.
        reasons: rows by the error that they failed with, the most frequent first.
        latest: the latest of them.
    """

    table: str
    rows: int
    reasons: dict[str, int]
    latest: tuple[QuarantinedRow, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def read_quarantined(migration: Migration, limit: int = 20) -> Quarantined:
    """Rows whose text is still the one that could not be embedded.

    Raises:
        TargetTableError: there is no such table.
    """
    target = require_table(migration).table.target
    with migration.database.autocommit() as connection:
        reasons = count_by_error(connection, target)
        latest = list_quarantined(connection, target, limit)
    return Quarantined(str(target), sum(reasons.values()), reasons, tuple(latest))


def release_quarantined(migration: Migration, ids: Sequence[str] | None = None) -> int:
    """Make rows pending again, those of the companion column too; returns how many.

    Args:
        migration: of the table.
        ids: of the rows, as text; None or none: all.
    """
    state = require_table(migration)
    target = state.table.target
    with migration.database.transaction() as connection:
        released = release(connection, target, ids)
        if state.companion is not None:
            release(connection, target.companion, ids)
    return released
