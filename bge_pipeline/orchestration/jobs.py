"""Jobs of ops: embedding what is pending, pause and resume, and the ways back and out. Those of assets are in asset_jobs.py."""

from typing import Any

import dagster as dg

from bge_pipeline.orchestration.asset_jobs import (
    backfill_job,
    compare_job,
    expand_job,
    report_job,
    status_job,
    swap_job,
)
from bge_pipeline.orchestration.ops import (
    adopt_table,
    embed_pending,
    keep_old_current,
    pause_runs,
    resume_runs,
    retire_old_column,
    roll_back,
)
from bge_pipeline.orchestration.per_table import PerTable, per_table
from bge_pipeline.orchestration.priorities import AT_ONCE, FRESH, priority
from bge_pipeline.orchestration.served import ServedTable


@per_table(
    lambda table: dg.job(
        name=table.called("embed_pending_job"),
        tags=priority(FRESH),
        description="Embed every pending row, new and changed ones, before the swap and ever after it.",
    )
)
def embed_pending_job(table: ServedTable) -> None:
    """Embed what is pending."""
    embed_pending.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("keep_old_current_job"),
        tags=priority(FRESH),
        description=(
            "While the next migration of a finished table runs, and until its retire: embed with the old model what waits."
        ),
    )
)
def keep_old_current_job(table: ServedTable) -> None:
    """Keep the column of the old model current."""
    keep_old_current.of(table)()


# Without the encoder's pool, which the run that is to be held has.
@per_table(
    lambda table: dg.job(
        name=table.called("pause_job"),
        tags=priority(AT_ONCE),
        description="Hold every run on the table, here and on other machines, after its batch in hand, until resume_job.",
    )
)
def pause_job(table: ServedTable) -> None:
    """Pause the runs on the table."""
    pause_runs.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("resume_job"),
        tags=priority(AT_ONCE),
        description="Let the runs on the table go on, whoever paused them.",
    )
)
def resume_job(table: ServedTable) -> None:
    """Resume the runs on the table."""
    resume_runs.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("rollback_job"),
        tags=priority(AT_ONCE),
        description="CHANGES WHAT SEARCH READS, back to the old vectors, until retire_job has run. Wants config `confirm`.",
    )
)
def rollback_job(table: ServedTable) -> None:
    """Roll back the swap."""
    roll_back.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("retire_job"),
        tags=priority(AT_ONCE),
        description="DROPS THE OLD VECTORS: there is no way back after it. Wants config `confirm`.",
    )
)
def retire_job(table: ServedTable) -> None:
    """Retire the old column."""
    retire_old_column.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("adopt_table_job"),
        tags=priority(AT_ONCE),
        description=(
            "Where the table has moved to another database: its history goes on here. Wants config `confirm`. For another "
            "table, give that one a history of its own."
        ),
    )
)
def adopt_table_job(table: ServedTable) -> None:
    """Say that this history is of the table of the settings."""
    adopt_table.of(table)()


JOBS: list[PerTable[Any]] = [
    expand_job,
    backfill_job,
    swap_job,
    report_job,
    embed_pending_job,
    keep_old_current_job,
    compare_job,
    status_job,
    pause_job,
    resume_job,
    rollback_job,
    retire_job,
    adopt_table_job,
]
