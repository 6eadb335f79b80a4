"""Asset checks. What they ask is in phases/verify.py; here is what an answer means for a run.

A check of `backfilled_embeddings` looks at the partitions that its run is about; in a run without a partition, as in
`swap_job`, at the whole table, and then it blocks: the swap does not begin. A swap that is launched without the checks
verifies for itself, under its lock.
"""

from collections.abc import Iterator

import dagster as dg

from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.orchestration.failures import explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata, gate_metadata
from bge_pipeline.orchestration.movement_check import moving
from bge_pipeline.orchestration.names import BACKFILLED, SWAPPED
from bge_pipeline.orchestration.partitions import targeted_range
from bge_pipeline.orchestration.per_table import PerTable, per_table
from bge_pipeline.orchestration.plan_check import plan_of_migration
from bge_pipeline.orchestration.run_history import others_are_to_come
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.orchestration.side_by_side_check import side_by_side
from bge_pipeline.orchestration.status_check import migration_status
from bge_pipeline.phases.application_vectors import compare_application_vectors
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.verdict import judge_for_swap
from bge_pipeline.phases.verify import (
    verify_index,
    verify_nothing_pending,
    verify_space,
    verify_unit_length,
)
from bge_pipeline.quality.bounds import SAME_VECTOR_COSINE
from bge_pipeline.quality.stored import SpaceCheck


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(BACKFILLED),
        blocking=True,
        description=(
            "No row waits for a vector (up to SWAP_MAX_PENDING_ROWS). Only a warning in the run of a partition, and while no "
            "more than 100 rows or a hundredth of the table wait: the application writes on, and the swap embeds such rows "
            "itself."
        ),
    )
)
def nothing_pending(
    context: dg.AssetCheckExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> dg.AssetCheckResult:
    """Whether every row has its vector."""
    id_range = targeted_range(context.instance, table, context.run.tags)
    with explained(table):
        found = verify_nothing_pending(migration, id_range)
    is_error = id_range is None and found.blocks_swap
    return dg.AssetCheckResult(
        passed=found.passed,
        severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
        description=(
            f"{found.pending:,} rows wait for a vector, {found.allowed:,} may"
            if found.pending
            else "no row waits for a vector"
        ),
        metadata=as_dagster_metadata(found.as_metadata()),
    )


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(BACKFILLED), blocking=True, description="Sampled vectors have unit length."
    )
)
def unit_length(
    context: dg.AssetCheckExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> dg.AssetCheckResult:
    """Whether cosine and inner product agree on the new vectors."""
    with explained(table):
        found = verify_unit_length(migration, targeted_range(context.instance, table, context.run.tags))
    return dg.AssetCheckResult(
        passed=found.passed,
        description=(
            f"{found.sampled_rows - found.rows_off_length:,} of {found.sampled_rows:,} sampled vectors have unit length"
        ),
        metadata=as_dagster_metadata(found.as_metadata()),
    )


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(BACKFILLED),
        blocking=True,
        description="The column is recorded as the configured model's, and sampled texts embedded again give the stored vectors.",
    )
)
def right_embedding_space(
    context: dg.AssetCheckExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> dg.AssetCheckResult:
    """Whether the column holds what the configured model makes."""
    with explained(table):
        found = verify_space(migration, embeddings.encoder, targeted_range(context.instance, table, context.run.tags))
    return dg.AssetCheckResult(
        passed=found.passed,
        description=_compared(found),
        metadata=as_dagster_metadata(found.as_metadata()),
    )


# Not @asset_check, which must answer: in the run of a partition that is not the last one, no answer is the right one.
@per_table(
    lambda table: dg.multi_asset_check(
        name=table.called(f"{BACKFILLED}_quality_gate"),
        specs=[
            dg.AssetCheckSpec(
                "quality_gate",
                asset=table.key(BACKFILLED),
                blocking=True,
                description=(
                    "Search with the new vectors is as good as before, by the bounds of the quality gate: neighbours, known "
                    "items, vectors made again, and nDCG@20 where EVAL_QUERIES is set. It compares the whole table, and so is "
                    "measured once in a backfill, by the run of its last partition, and skipped by the others; one that "
                    "the sensor repeats leaves it to the swap. The swap "
                    "takes this verdict within a quarter of an hour and measures its index; later it asks the whole gate again."
                ),
            )
        ],
        can_subset=True,
    )
)
def quality_gate(
    context: dg.AssetCheckExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> Iterator[dg.AssetCheckResult]:
    """Whether the new vectors may replace the old ones."""
    with explained(table):
        if others_are_to_come(context.instance, table, context.run):
            context.log.info("not measured here: the whole table is compared once its last partition is embedded")
            return
        report = judge_for_swap(migration, embeddings)
    if report is None:
        yield dg.AssetCheckResult(passed=True, description="no row has a vector yet: nothing to compare")
        return
    is_error = report.gate.blocks and targeted_range(context.instance, table, context.run.tags) is None
    yield dg.AssetCheckResult(
        passed=report.gate.passed,
        severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
        description=report.gate.summary(),
        metadata=gate_metadata(report.gate),
    )


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(SWAPPED),
        blocking=True,
        description="The column that search reads has a vector index, and no unfinished leftover of one.",
    )
)
def index_valid(table: ServedTable, migration: dg.ResourceParam[Migration]) -> dg.AssetCheckResult:
    """Whether search uses a complete index."""
    with explained(table):
        found = verify_index(migration)
    return dg.AssetCheckResult(
        passed=found.passed,
        description=(
            f"complete: {', '.join(found.valid) or 'none'}; unfinished: {', '.join(found.invalid)}"
            if found.invalid or not found.valid
            else f"{', '.join(found.valid)} is complete"
        ),
        metadata=as_dagster_metadata(found.as_metadata()),
    )


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(SWAPPED),
        description=(
            "Where old and new vectors have the same dimensions, and until retire: a sample of what was written since the swap "
            "holds the new model's vectors. The sensor `notice_old_vectors` asks for it when something was written."
        ),
    )
)
def only_new_vectors(
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> dg.AssetCheckResult:
    """Whether the application writes the new model's vectors."""
    with explained(table):
        found = compare_application_vectors(migration, lambda: embeddings.encoder)
    if found is None:
        return dg.AssetCheckResult(passed=True, description="nothing to compare: no vector was written since the swap")
    is_unknown = found.not_compared is not None
    return dg.AssetCheckResult(
        passed=found.passed and not is_unknown,
        severity=dg.AssetCheckSeverity.WARN if is_unknown else dg.AssetCheckSeverity.ERROR,
        description=str(found),
        metadata=as_dagster_metadata(found.as_metadata()),
    )


def _compared(found: SpaceCheck) -> str:
    if not found.is_same:
        return f"{found.column} holds {found.recorded}, the configured model makes {found.configured}"
    if found.agreement is None:
        return f"{found.column} is recorded as {found.recorded}; there is no vector yet to compare"
    return (
        f"{found.column} is recorded as {found.recorded}; {found.agreement.rows} texts embedded again have cosine "
        f"{found.agreement.min_cosine:.4f} or more with their vectors, {SAME_VECTOR_COSINE} is expected"
    )


CHECKS: list[PerTable[dg.AssetChecksDefinition]] = [
    plan_of_migration,
    nothing_pending,
    unit_length,
    right_embedding_space,
    quality_gate,
    side_by_side,
    moving,
    index_valid,
    only_new_vectors,
    migration_status,
]
