"""Embed: give pending rows their vectors in the column that is filled, and do nothing else. For cron."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bge_pipeline.database.pause import PauseEntry, read_pause
from bge_pipeline.database.pending import has_more_pending_than
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.phases.backfill import BackfillProgress, BackfillResult, backfill
from bge_pipeline.phases.ending import require_whole
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.quarantined import release_quarantined
from bge_pipeline.phases.state import require_space, require_table


@dataclass(frozen=True)
class EmbedResult:
    """What was embedded.

    Attributes:
        table: schema-qualified, quoted.
        column: the new column during a migration, else the one that search reads.
        model: the one that the column is recorded with.
        backfill: what was done; None where nothing was pending or the table was paused, for which no model is loaded.
        paused: the pause that was found; None where there was none.
    """

    table: str
    column: str
    model: str
    backfill: BackfillResult | None
    paused: PauseEntry | None = None

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        done = self.backfill
        return {
            "table": self.table,
            "column": self.column,
            "model": self.model,
            "rows": done.rows if done else 0,
            "quarantined": done.quarantined if done else 0,
            "truncated": done.truncated if done else 0,
            "pending_after": done.pending_after if done else 0,
            "seconds": done.seconds if done else 0.0,
            "paused": self.paused.as_metadata() if self.paused else None,
        }


def embed_pending(
    migration: Migration,
    *,
    retry_quarantined: bool = False,
    on_progress: Callable[[BackfillProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> EmbedResult:
    """Embed what is pending. No column is added or exchanged, no index built, and no other model begun.

    On a table that is paused it ends at once, since cron begins the next one soon; one that is at work waits.

    Args:
        migration: of the table.
        retry_quarantined: make quarantined rows pending again first.
        on_progress: called after each commit, and every second while something holds it back.
        stop: set it to end after the batch in hand.

    Raises:
        Stopped: `stop` was set; or (BudgetSpent) the budget is spent.
        PhaseError: no migration has begun, so that there is no column to fill.
        EmbeddingSpaceMismatch: the settings name another model than the column's; nothing was written.
        BgePipelineError: whatever the backfill raises.
    """
    state = require_table(migration)
    target, column, space = state.table.target, state.filled, configured_space(migration.settings)
    require_space(column, space, target)
    if retry_quarantined:
        release_quarantined(migration)
    with explaining_text(target), migration.database.autocommit() as connection:
        is_pending = has_more_pending_than(connection, target, column.name, 0)
        paused = read_pause(connection, target)
    if paused is not None:
        return EmbedResult(str(target), column.name, space.model, None, paused)
    if not is_pending:
        return EmbedResult(str(target), column.name, space.model, None)
    with open_service(migration) as service:
        done = backfill(migration, service.encoder, on_progress=on_progress, stop=stop)
    require_whole(done, stop, "bge-pipeline embed goes on")
    return EmbedResult(str(target), column.name, space.model, done)
