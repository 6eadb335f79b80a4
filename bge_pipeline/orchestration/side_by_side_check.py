"""Side by side as an asset check: what questions find with both columns, for a person to look at before the swap."""

from collections.abc import Iterator

import dagster as dg

from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.orchestration.failures import explained
from bge_pipeline.orchestration.names import BACKFILLED
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.run_history import others_are_to_come
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.compare_search import can_compare, compare_search
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.report.pages import comparison_as_markdown


# Not @asset_check, which must answer: in the run of a partition that is not the last one, there is nothing to look at yet.
@per_table(
    lambda table: dg.multi_asset_check(
        name=table.called(f"{BACKFILLED}_side_by_side"),
        specs=[
            dg.AssetCheckSpec(
                "side_by_side",
                asset=table.key(BACKFILLED),
                description=(
                    "The first ten results of ten questions with the old and with the new vectors: what stayed, moved, came and "
                    "went, with the texts. It passes whatever they are: it is for people to look at before they let the swap "
                    "happen. COMPARE_QUERIES or QUERY_LOG give your own questions. Made by the run of a backfill's last "
                    "partition."
                ),
            )
        ],
        can_subset=True,
    )
)
def side_by_side(
    context: dg.AssetCheckExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> Iterator[dg.AssetCheckResult]:
    """What questions find with both columns."""
    with explained(table):
        if others_are_to_come(context.instance, table, context.run):
            context.log.info("not compared here: the whole table is searched once its last partition is embedded")
            return
        if not can_compare(require_table(migration)):
            yield dg.AssetCheckResult(
                passed=True, description="the table has not both the old vectors and the new ones"
            )
            return
        found = compare_search(migration, embeddings)
    yield dg.AssetCheckResult(
        passed=True,
        description=found.summary(),
        metadata={"side_by_side": dg.MetadataValue.md(comparison_as_markdown(found))},
    )
