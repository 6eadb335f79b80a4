"""The four assets. A body takes its context, calls one function and reports; work and SQL live in phases/."""

from typing import Any

import dagster as dg

from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.orchestration import partitions, run_history
from bge_pipeline.orchestration.failures import TRANSIENT_RETRIES, explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata, gate_metadata, settings_metadata
from bge_pipeline.orchestration.names import BACKFILLED, OWNERS, REPORT, SCHEMA, SWAPPED
from bge_pipeline.orchestration.own_history import require_own_history
from bge_pipeline.orchestration.per_table import PerTable, per_table
from bge_pipeline.orchestration.pool import register_pool
from bge_pipeline.orchestration.progress import log_backfill, log_index_build, log_step
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.ending import require_whole
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.swap import swap
from bge_pipeline.phases.verify import require_backfilled
from bge_pipeline.report.benchmark import BenchmarkReport
from bge_pipeline.report.pages import as_markdown, summary_as_markdown, write_report


@per_table(
    lambda table: dg.asset(
        key=table.key(SCHEMA),
        group_name=table.group,
        owners=OWNERS,
        kinds={"postgres"},
        tags={"phase": "expand"},
        code_version="1",
        retry_policy=TRANSIENT_RETRIES,
        description=(
            "The new vector column beside the old one, with the trigger that empties a vector whose text changes, the "
            "quarantine table and the index of pending rows. Cuts the table into the partitions of the backfill. "
            "Repeating it changes nothing. Where the last migration is over or was rolled back, it wants to be told to begin "
            "the next one or to go forward again: resources.settings.config in the launchpad."
        ),
    )
)
def schema_with_384_column(
    context: dg.AssetExecutionContext, table: ServedTable, migration: dg.ResourceParam[Migration]
) -> dg.MaterializeResult[None]:
    """Expand."""
    # There is nothing to launch a backfill of before the partitions are cut.
    register_pool(context.instance, table.pool)
    with explained(table):
        require_own_history(context.instance, table, migration)
        run_history.take_up(context.instance, table, require_table(migration))
        result = expand(migration, configured_space(migration.settings))
        state = require_table(migration)
        is_another = result.added or run_history.is_of_another_column(context.instance, table, state)
        if is_another or not partitions.known_keys(context.instance, table):
            partitions.recut(context.instance, table, migration)
        # Behind the cut, so that a run that dies before it leaves the cut to the next one.
        run_history.take_up(context.instance, table, state, anew=is_another)
    counts = {"partitions": len(partitions.known_keys(context.instance, table))}
    return dg.MaterializeResult(
        metadata=as_dagster_metadata(result.as_metadata() | counts | settings_metadata(migration.settings))
    )


@per_table(
    lambda table: dg.asset(
        key=table.key(BACKFILLED),
        group_name=table.group,
        owners=OWNERS,
        kinds={"postgres", "python"},
        tags={"phase": "backfill"},
        code_version="1",
        deps=[table.key(SCHEMA)],
        partitions_def=table.partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(table.partitions_per_run),
        retry_policy=TRANSIENT_RETRIES,
        pool=table.pool,
        description=(
            "A vector of the new model for every row that has text. One partition is an id range of about PARTITION_ROWS "
            "rows. Every batch is committed by itself and only rows without a vector are read, so a failed or killed run "
            "loses at most the batches in flight, and running a partition again does what is left. The partitions are cut by "
            "schema_with_384_column: before that there is none, and Launch stays grey. How far a run is: its log and its tag "
            "`progress`, with the time left in it and in all."
        ),
    )
)
def backfilled_embeddings(
    context: dg.AssetExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> dg.MaterializeResult[None]:
    """Backfill of one partition, or of each partition of a range."""
    keys = list(context.partition_keys)
    done: dict[str, dict[str, dg.MetadataValue]] = {}
    try:
        for number, key in enumerate(keys):
            with explained(table):
                require_own_history(context.instance, table, migration)
                state = require_table(migration)
                # Another road has expanded, and whoever launches the backfill takes these partitions for that column's.
                is_another = run_history.is_of_another_column(context.instance, table, state)
                run_history.take_up(context.instance, table, state, anew=is_another)
                overall = run_history.how_far(context.instance, table, keys, number, migration.settings.partition_rows)
                result = backfill(
                    migration,
                    embeddings.encoder,
                    partitions.range_of(context.instance, key),
                    on_progress=log_backfill(context, BACKFILLED, overall),
                )
                require_whole(result, None, "materialize the partition again: it goes on with what is left")
                partitions.require_kept(context.instance, table, keys)
            rate, after = result.texts_per_second, {"partitions_left": overall.partitions - overall.done - 1}
            if rate:
                after["seconds_left_in_all"] = round(overall.rows_to_come / rate)
            done[key] = as_dagster_metadata(result.as_metadata() | after | settings_metadata(migration.settings))
            context.add_asset_metadata(done[key], partition_key=key)
    except BaseException:
        # Of a step that fails Dagster materializes nothing: those that are done need not run again.
        for key, metadata in done.items():
            context.log_event(dg.AssetMaterialization(table.key(BACKFILLED), partition=key, metadata=metadata))
        raise
    return dg.MaterializeResult()


@per_table(
    lambda table: dg.asset(
        key=table.key(SWAPPED),
        group_name=table.group,
        owners=OWNERS,
        kinds={"postgres"},
        tags={"phase": "swap"},
        code_version="1",
        deps=[table.key(BACKFILLED)],
        retry_policy=TRANSIENT_RETRIES,
        description=(
            "The table as search reads it after the exchange: the new vectors, indexed, under the old column's name. Builds "
            "the index beside live traffic, embeds what the application wrote meanwhile, verifies under the lock and "
            "exchanges the columns in milliseconds. The old vectors stay until `retire_job`; `rollback_job` goes back."
        ),
    )
)
def swapped_index(
    context: dg.AssetExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> dg.MaterializeResult[None]:
    """Swap."""
    with explained(table):
        require_own_history(context.instance, table, migration)
        require_backfilled(migration)
        result = swap(
            migration,
            embeddings,
            on_progress=log_index_build(context.log, SWAPPED),
            on_step=log_step(context.log),
        )
    facts = result.as_metadata() | {"gate": None} | settings_metadata(migration.settings)
    return dg.MaterializeResult(metadata=as_dagster_metadata(facts) | gate_metadata(result.gate))


@per_table(
    lambda table: dg.asset(
        key=table.key(REPORT),
        group_name=table.group,
        owners=OWNERS,
        kinds={"markdown"},
        tags={"phase": "report"},
        code_version="1",
        deps=[table.key(SWAPPED)],
        retry_policy=TRANSIENT_RETRIES,
        pool=table.pool,
        description=(
            "What was measured on the migrated table: encoding, search before and after, the quality gate, storage, and the "
            "time of each phase. `summary` is what to read first, `report` the whole, `report_page` the same in the browser, "
            "`report_path` as a file; the numbers are there for their history over runs, under Plots."
        ),
    )
)
def benchmark_report(
    context: dg.AssetExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> dg.MaterializeResult[None]:
    """Report."""
    with explained(table):
        require_own_history(context.instance, table, migration)
        report = benchmark(migration, embeddings, on_step=context.log.info)
    return dg.MaterializeResult(
        metadata=_report_pages(context, migration, report)
        | as_dagster_metadata(report.as_metadata() | settings_metadata(migration.settings))
        | gate_metadata(report.gate)
    )


def _report_pages(
    context: dg.AssetExecutionContext, migration: Migration, report: BenchmarkReport
) -> dict[str, dg.MetadataValue[Any]]:
    """What people read; without the file and the link to it where none can be written on this machine."""
    pages: dict[str, dg.MetadataValue[Any]] = {"summary": dg.MetadataValue.md(summary_as_markdown(report))}
    full: dict[str, dg.MetadataValue[Any]] = {"report": dg.MetadataValue.md(as_markdown(report))}
    try:
        written = write_report(report, migration.settings.home / "reports")
    except OSError as error:
        context.log.warning("the report is shown here alone, its files could not be written: %s", error)
        return pages | full
    if migration.settings.reports_url is not None:
        link = f"{migration.settings.reports_url.rstrip('/')}/{written.html.name}"
        pages["report_page"] = dg.MetadataValue.url(link)
    return pages | full | {"report_path": dg.MetadataValue.path(str(written.html))}


ASSETS: list[PerTable[dg.AssetsDefinition]] = [
    schema_with_384_column,
    backfilled_embeddings,
    swapped_index,
    benchmark_report,
]
