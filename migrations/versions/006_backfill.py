"""Backfill: every pending row gets its vector. Resumable: killed, it goes on with what is still NULL."""

from __future__ import annotations

from alembic import context

from bge_pipeline.phase_line import phase_line
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.ending import require_whole
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.revisions import run_phase

revision = "006"
down_revision = "005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Embed what is pending; in `--sql` there is nothing to print, since vectors come from the model."""
    if not context.is_offline_mode():
        run_phase(_embed)


def downgrade() -> None:
    """Nothing to take back: the vectors stay in the new column, which 005's downgrade drops."""


def _embed(migration: Migration) -> None:
    with open_service(migration) as service, phase_line() as line:
        result = backfill(migration, service.encoder, on_progress=line.backfill)
    require_whole(result, None, "the same upgrade again")
