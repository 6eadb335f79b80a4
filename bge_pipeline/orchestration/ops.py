"""Ops: what a job does that materializes no asset. They embed what is pending, hold the runs, and lead back and out."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConsentRequired
from bge_pipeline.orchestration.failures import TRANSIENT_RETRIES, explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata
from bge_pipeline.orchestration.names import BACKFILLED, LEFT_PENDING_TAG, SWAPPED, WITHOUT_OLD_MODEL_TAG
from bge_pipeline.orchestration.own_history import adopt, require_own_history
from bge_pipeline.orchestration.own_tags import tag_itself
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.progress import log_backfill, log_index_build, log_step
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.orchestration.status_check import log_status
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.companion import keep_companion
from bge_pipeline.phases.consent import require_confirmation
from bge_pipeline.phases.ending import require_whole
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import PauseResult, pause, resume, this_user
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback


@per_table(
    lambda table: dg.op(
        name=table.called("embed_pending"),
        pool=table.pool,
        retry_policy=TRANSIENT_RETRIES,
        description="Embed every pending row, whatever its id.",
    )
)
def embed_pending(
    context: dg.OpExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
    embeddings: dg.ResourceParam[EmbeddingsService],
) -> None:
    """Embed what is pending; seen in the history of `backfilled_embeddings` as an observation."""
    with explained(table):
        require_own_history(context.instance, table, migration)
        result = backfill(migration, embeddings.encoder, on_progress=log_backfill(context, "embed_pending"))
    _tag_without_old_model(context, result.companion_is_kept)
    _tag_left_pending(context, result.pending_after, result.rows + result.quarantined + result.companion_rows)
    context.log_event(dg.AssetObservation(table.key(BACKFILLED), metadata=as_dagster_metadata(result.as_metadata())))
    with explained(table):
        require_whole(result, None, "launch embed_pending_job again")


class ConfirmConfig(dg.Config):
    """What an op that changes what search reads, or drops vectors, wants typed."""

    confirm: str = Field(
        "",
        description="The table that this run changes, as schema.table: the run fails, with nothing changed, unless it is "
        "the table of TARGET_SCHEMA and TARGET_TABLE.",
    )


@per_table(
    lambda table: dg.op(
        name=table.called("keep_old_current"),
        pool=table.pool,
        retry_policy=TRANSIENT_RETRIES,
        description="Embed with the old model what waits in its column.",
    )
)
def keep_old_current(
    context: dg.OpExecutionContext, table: ServedTable, migration: dg.ResourceParam[Migration]
) -> None:
    """Keep the companion column current; the new model is not loaded."""
    with explained(table):
        require_own_history(context.instance, table, migration)
        result = keep_companion(migration)
    _tag_without_old_model(context, result.is_kept)
    if not result.is_left:
        _tag_left_pending(context, result.pending, result.rows)
    context.log_event(dg.AssetObservation(table.key(BACKFILLED), metadata=as_dagster_metadata(result.as_metadata())))


def _tag_without_old_model(context: dg.OpExecutionContext, is_kept: bool | None) -> None:
    if is_kept is False:
        tag_itself(context.instance, context.run_id, WITHOUT_OLD_MODEL_TAG)


def _tag_left_pending(context: dg.OpExecutionContext, pending: int, done: int) -> None:
    if pending and not done:
        tag_itself(context.instance, context.run_id, LEFT_PENDING_TAG, str(pending))


class PauseConfig(dg.Config):
    """What may be said with a pause."""

    reason: str = Field("", description="Why, shown to whoever finds the table paused.")


@per_table(
    lambda table: dg.op(
        name=table.called("pause_runs"),
        retry_policy=TRANSIENT_RETRIES,
        description="Hold every run on the table after the batch it has in hand.",
    )
)
def pause_runs(
    context: dg.OpExecutionContext,
    config: PauseConfig,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> None:
    """Pause; seen in the history of `backfilled_embeddings` as an observation."""
    with explained(table):
        result = pause(migration, by=_by(context), reason=config.reason or None)
    _log_pause(context, table, result)


@per_table(
    lambda table: dg.op(
        name=table.called("resume_runs"),
        retry_policy=TRANSIENT_RETRIES,
        description="Let the runs on the table go on, whoever paused them.",
    )
)
def resume_runs(context: dg.OpExecutionContext, table: ServedTable, migration: dg.ResourceParam[Migration]) -> None:
    """Resume; seen in the history of `backfilled_embeddings` as an observation."""
    with explained(table):
        result = resume(migration, by=_by(context))
    _log_pause(context, table, result)


def _by(context: dg.OpExecutionContext) -> str:
    return f"Dagster run {context.run_id[:8]} ({this_user()})"


def _log_pause(context: dg.OpExecutionContext, table: ServedTable, result: PauseResult) -> None:
    context.log.info("%s: %s", result.table, result.latest or "not paused")
    context.log_event(dg.AssetObservation(table.key(BACKFILLED), metadata=as_dagster_metadata(result.as_metadata())))


@per_table(
    lambda table: dg.op(
        name=table.called("roll_back"),
        retry_policy=TRANSIENT_RETRIES,
        description="Exchange the columns back; the new vectors are kept beside them.",
    )
)
def roll_back(
    context: dg.OpExecutionContext,
    config: ConfirmConfig,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> None:
    """Roll back; `swapped_index` says so, and its check `migration_status`."""
    with explained(table):
        _require_confirmed(context, config, migration)
        require_own_history(context.instance, table, migration)
        result = rollback(migration, on_progress=log_index_build(context.log, SWAPPED), on_step=log_step(context.log))
        _log_state(context, table, migration, "rolled back", result.as_metadata())
    for notice in result.notices:
        context.log.warning(notice)


class RetireConfig(ConfirmConfig):
    """Choices of `retire_old_column`."""

    reclaim: bool = Field(
        False,
        description="Rewrite the table at once with VACUUM FULL, which locks out readers and writers until it is done; "
        "otherwise PostgreSQL reuses the space as rows are rewritten.",
    )


@per_table(
    lambda table: dg.op(
        name=table.called("retire_old_column"),
        retry_policy=TRANSIENT_RETRIES,
        description="Drop the old column. There is no way back after it.",
    )
)
def retire_old_column(
    context: dg.OpExecutionContext,
    config: RetireConfig,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> None:
    """Retire; `swapped_index` says so, and its check `migration_status`."""
    with explained(table):
        _require_confirmed(context, config, migration)
        require_own_history(context.instance, table, migration)
        result = retire(migration, reclaim=config.reclaim)
        _log_state(context, table, migration, "retired", result.as_metadata())


def _log_state(
    context: dg.OpExecutionContext, table: ServedTable, migration: Migration, state: str, facts: Mapping[str, Any]
) -> None:
    """What became of the table is the latest state of `swapped_index`, of which the report is then no longer up to date."""
    # A version of the data: without one, the assets downstream would look as if nothing had happened.
    version = {"dagster/data_version": f"{state} in run {context.run_id}"}
    metadata = as_dagster_metadata({"state": state, **facts})
    context.log_event(dg.AssetMaterialization(table.key(SWAPPED), metadata=metadata, tags=version))
    log_status(context, table, migration)


def _require_confirmed(context: dg.OpExecutionContext, config: ConfirmConfig, migration: Migration) -> None:
    """Refuse a run without `confirm`, and one that only repeats a finished run, `confirm` and all, at a click."""
    repeated = context.run.parent_run_id
    parent = context.instance.get_run_by_id(repeated) if repeated is not None else None
    if parent is not None and parent.is_success:
        raise ConsentRequired(
            f"this run repeats run {parent.run_id[:8]}, which has done its work: what was confirmed then is not confirmed now",
            state="nothing was changed",
            next_step=f"launch {context.job_name} from its launchpad, with confirm typed anew",
        )
    require_confirmation(migration.target, config.confirm)


@per_table(
    lambda table: dg.op(
        name=table.called("adopt_table"),
        retry_policy=TRANSIENT_RETRIES,
        description="Say that this history is of the table of the settings.",
    )
)
def adopt_table(
    context: dg.OpExecutionContext,
    config: ConfirmConfig,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> None:
    """Adopt; seen in the check `migration_status`."""
    with explained(table):
        _require_confirmed(context, config, migration)
        context.log.info("this history is now that of %s", adopt(context.instance, table, migration))
        log_status(context, table, migration)
