"""Baseline: the table as the application has it. Changes nothing, and says so where there is no such table."""

from __future__ import annotations

from alembic import context

from bge_pipeline.phases.state import require_table
from bge_pipeline.revisions import run_phase

revision = "004"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Check that the target table is there and can be migrated."""
    if not context.is_offline_mode():
        run_phase(require_table)


def downgrade() -> None:
    """Nothing to take back."""
