"""Jobs of assets: one for each phase, and two that ask a check."""

import dagster as dg

from bge_pipeline.orchestration.checks import only_new_vectors, quality_gate
from bge_pipeline.orchestration.movement_check import moving
from bge_pipeline.orchestration.names import BACKFILL_JOB, BACKFILLED, EXPAND_JOB, REPORT, SCHEMA, SWAPPED
from bge_pipeline.orchestration.per_table import PerTable
from bge_pipeline.orchestration.priorities import AT_ONCE, FRESH, priority
from bge_pipeline.orchestration.side_by_side_check import side_by_side
from bge_pipeline.orchestration.status_check import migration_status

expand_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called(EXPAND_JOB),
        tags=priority(FRESH),
        selection=[table.key(SCHEMA)],
        description="Add the new column and what keeps it true, and cut the table into partitions.",
    )
)

backfill_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called(BACKFILL_JOB),
        # The first two compare the whole table: they are asked once, by swap_job, and not after each partition.
        selection=dg.AssetSelection.assets(table.key(BACKFILLED))
        - dg.AssetSelection.checks(quality_gate.of(table), side_by_side.of(table), moving.of(table)),
        description="Embed one partition, or a range of partitions in one run, and check it.",
    )
)

swap_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("swap_job"),
        tags=priority(FRESH),
        selection=dg.AssetSelection.assets(table.key(SWAPPED))
        | dg.AssetSelection.checks_for_assets(table.key(BACKFILLED)),
        description="Check the whole table, build the index, exchange the columns, check the index. A failed check stops it.",
    )
)

compare_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("compare_job"),
        tags=priority(AT_ONCE),
        selection=dg.AssetSelection.checks(only_new_vectors.of(table)),
        description="Compare a sample of what was written since the swap with what the new model makes of it.",
    )
)

status_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("status_job"),
        tags=priority(AT_ONCE),
        selection=dg.AssetSelection.checks(migration_status.of(table)),
        description="See where the migration stands; it is the check migration_status of swapped_index.",
    )
)

report_job = PerTable(
    lambda table: dg.define_asset_job(
        table.called("report_job"),
        tags=priority(FRESH),
        selection=[table.key(REPORT)],
        description="Write the benchmark report.",
    )
)
