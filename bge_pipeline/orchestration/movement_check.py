"""Whether the backfill stands still, as an asset check. What there is to see is phases/movement.py's."""

import dagster as dg

from bge_pipeline.orchestration.failures import explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata
from bge_pipeline.orchestration.names import BACKFILLED
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.movement import Movement, read_movement

CHECK = "moving"


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(BACKFILLED),
        name=CHECK,
        description=(
            "Red where rows wait for a vector, the table is not paused, and no process, on whatever machine, has written one for "
            "STANDSTILL_MINUTES: a run hangs, a machine is gone, or nobody has launched what is left. The sensor "
            "`watch_movement` answers it without a run, and so also when no run can start."
        ),
    )
)
def moving(table: ServedTable, migration: dg.ResourceParam[Migration]) -> dg.AssetCheckResult:
    """Whether somebody writes what is pending."""
    with explained(table):
        evaluation = evaluate_movement(table, read_movement(migration))
    return dg.AssetCheckResult(
        passed=evaluation.passed,
        severity=evaluation.severity,
        description=evaluation.description,
        metadata=evaluation.metadata,
    )


def evaluate_movement(table: ServedTable, found: Movement) -> dg.AssetCheckEvaluation:
    """The check's answer, for a sensor to tell as well."""
    return dg.AssetCheckEvaluation(
        asset_key=table.key(BACKFILLED),
        check_name=CHECK,
        passed=not found.stands_still,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(found),
        metadata=as_dagster_metadata(found.as_metadata()),
    )
