"""Expand: the new column, its trigger, its quarantine and its index of pending rows."""

from __future__ import annotations

from alembic import context

from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.phase_line import phase_line
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.sql_for_review import expand_script
from bge_pipeline.revisions import print_phase, run_phase

revision = "005"
down_revision = "004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    if context.is_offline_mode():
        print_phase(expand_script)
    else:
        run_phase(lambda migration: expand(migration, configured_space(migration.settings)))


def downgrade() -> None:
    """Build the dropped indexes again and drop the column, with the vectors in it."""
    run_phase(_collapse)


def _collapse(migration: Migration) -> None:
    with phase_line() as line:
        collapse(migration, on_progress=line.index, on_step=line.step)
