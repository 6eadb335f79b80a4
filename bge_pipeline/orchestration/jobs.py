"""Jobs: one for each phase, one that embeds what is pending, and the ways back and out."""

from typing import Any

import dagster as dg

from bge_pipeline.orchestration.checks import only_new_vectors, quality_gate
from bge_pipeline.orchestration.names import BACKFILL_JOB, BACKFILLED, REPORT, SCHEMA, SWAPPED
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
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.orchestration.side_by_side_check import side_by_side
from bge_pipeline.orchestration.status_check import migration_status

expand_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("expand_job"),
        selection=[table.key(SCHEMA)],
        description="Add the new column and what keeps it true, and cut the table into partitions.",
    )
)

backfill_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called(BACKFILL_JOB),
        # Both compare the whole table: they are asked once, by swap_job, and not after each partition.
        selection=dg.AssetSelection.assets(table.key(BACKFILLED))
        - dg.AssetSelection.checks(quality_gate.of(table), side_by_side.of(table)),
        description="Embed one partition, or a range of partitions in one run, and check it.",
    )
)

swap_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("swap_job"),
        selection=dg.AssetSelection.assets(table.key(SWAPPED))
        | dg.AssetSelection.checks_for_assets(table.key(BACKFILLED)),
        description="Check the whole table, build the index, exchange the columns, check the index. A failed check stops it.",
    )
)

compare_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("compare_job"),
        selection=dg.AssetSelection.checks(only_new_vectors.of(table)),
        description="Compare a sample of what was written since the swap with what the new model makes of it.",
    )
)

status_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("status_job"),
        selection=dg.AssetSelection.checks(migration_status.of(table)),
        description="See where the migration stands; it is the check migration_status of swapped_index.",
    )
)

report_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("report_job"), selection=[table.key(REPORT)], description="Write the benchmark report."
    )
)


@per_table(
    lambda table: dg.job(
        name=table.called("embed_pending_job"),
        description="Embed every pending row, new and changed ones, before the swap and ever after it.",
    )
)
def embed_pending_job(table: ServedTable) -> None:
    """Embed what is pending."""
    embed_pending.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("keep_old_current_job"),
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
        description="Hold every run on the table, here and on other machines, after its batch in hand, until resume_job.",
    )
)
def pause_job(table: ServedTable) -> None:
    """Pause the runs on the table."""
    pause_runs.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("resume_job"), description="Let the runs on the table go on, whoever paused them."
    )
)
def resume_job(table: ServedTable) -> None:
    """Resume the runs on the table."""
    resume_runs.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("rollback_job"),
        description="CHANGES WHAT SEARCH READS, back to the old vectors, until retire_job has run. Wants config `confirm`.",
    )
)
def rollback_job(table: ServedTable) -> None:
    """Roll back the swap."""
    roll_back.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("retire_job"),
        description="DROPS THE OLD VECTORS: there is no way back after it. Wants config `confirm`.",
    )
)
def retire_job(table: ServedTable) -> None:
    """Retire the old column."""
    retire_old_column.of(table)()


@per_table(
    lambda table: dg.job(
        name=table.called("adopt_table_job"),
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
