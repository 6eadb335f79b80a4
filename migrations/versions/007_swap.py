"""Swap: index the new column, verify it, exchange the columns in one short transaction."""

from __future__ import annotations

import logging

from alembic import context

from bge_pipeline.phase_line import phase_line
from bge_pipeline.phases.migrate import catch_up_and_swap, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.sql_for_review import swap_script
from bge_pipeline.phases.state import require_table
from bge_pipeline.revisions import print_phase, run_phase

revision = "007"
down_revision = "006"
branch_labels = None
depends_on = None

logger = logging.getLogger("bge_pipeline.migrations")


def upgrade() -> None:
    """Make the new column the one that search reads."""
    if context.is_offline_mode():
        print_phase(swap_script)
    else:
        run_phase(_swap)


def downgrade() -> None:
    """Exchange the columns back, while the old one is there; where they are not exchanged, there is nothing to take back."""
    run_phase(_roll_back)


def _roll_back(migration: Migration) -> None:
    state = require_table(migration)
    if state.new is not None or state.phase == "legacy":  # another road went back, or the column is that of a part
        logger.info("the columns of %s are not exchanged: there is nothing to take back", migration.target)
        return
    with phase_line() as line:
        rollback(migration, on_progress=line.index, on_step=line.step)


def _swap(migration: Migration) -> None:
    with open_service(migration) as service, phase_line() as line:
        catch_up_and_swap(migration, service, on_index=line.index, on_step=line.step)
