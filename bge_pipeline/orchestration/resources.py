"""Resources: configuration in, plain objects out. What comes out knows no Dagster."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ClassVar

import dagster as dg
from pydantic import Field

from bge_pipeline.database.heartbeat import RunHeartbeat
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration.failures import launch_again
from bge_pipeline.orchestration.own_tags import tag_itself
from bge_pipeline.orchestration.served import THE_TABLE, ServedTable
from bge_pipeline.orchestration.workers import WORKER_TAG
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.process import this_process
from bge_pipeline.settings import Settings
from bge_pipeline.settings.configuration import in_force


def _override(name: str) -> Any:
    """A field of the launchpad that wins over the environment variable of the same name."""
    described = Settings.model_fields[name].description
    return Field(None, description=f"{described} (unset: {name.upper()} of the environment, or its default)")


class SettingsResource(dg.ConfigurableResource[Settings]):
    """The settings of the environment, read as a run starts, with what the launchpad overrides.

    Secrets, the model and the names of the target table come from the environment alone; what errors advise is here.
    Consent is given for one run.
    """

    table: ClassVar[ServedTable] = THE_TABLE

    partition_rows: int | None = _override("partition_rows")
    backfill_batch_rows: int | None = _override("backfill_batch_rows")
    max_rows_per_second: int | None = _override("max_rows_per_second")
    max_replication_lag_mb: int | None = _override("max_replication_lag_mb")
    max_search_slowdown: float | None = _override("max_search_slowdown")
    embedding_device: str | None = _override("embedding_device")
    embedding_batch_size: int | None = _override("embedding_batch_size")
    index_method: str | None = _override("index_method")
    index_lists: int | None = _override("index_lists")
    index_max_memory_mb: int | None = _override("index_max_memory_mb")
    index_build_workers: int | None = _override("index_build_workers")
    index_element: str | None = _override("index_element")
    quality_gate: str | None = _override("quality_gate")
    quality_min_ann_recall: float | None = _override("quality_min_ann_recall")
    quality_min_read_whole: float | None = _override("quality_min_read_whole")
    dependents: str | None = _override("dependents")
    backfill_triggers: str | None = _override("backfill_triggers")
    backfill_wait_for_snapshots: float | None = _override("backfill_wait_for_snapshots")
    keep_old_current: str | None = _override("keep_old_current")
    old_index: str | None = _override("old_index")
    lock_timeout_ms: int | None = _override("lock_timeout_ms")
    lock_max_attempts: int | None = _override("lock_max_attempts")
    operator_wait_seconds: float | None = _override("operator_wait_seconds")
    swap_max_writer_pause_ms: int | None = _override("swap_max_writer_pause_ms")
    swap_max_pending_rows: int | None = _override("swap_max_pending_rows")
    begin_next_migration: str | None = _override("begin_next_migration")
    forward_after_rollback: str | None = _override("forward_after_rollback")

    def create_resource(self, context: dg.InitResourceContext) -> Settings:
        """The validated settings, which the run's log shows as far as they are not the defaults."""
        chosen = {name: getattr(self, name) for name in type(self).model_fields}
        settings = self.table.settings(**{name: value for name, value in chosen.items() if value is not None})
        if context.log is not None:
            told = ", ".join(f"{name}={value}" for name, value in in_force(settings).items())
            context.log.info("settings in force, where not the defaults: %s", told or "none")
        return settings


class MigrationResource(dg.ConfigurableResource[Migration]):
    """The migration that the settings describe, in the database of DATABASE_URL, or in the embedded PostgreSQL.

    Its connections are closed as the run ends.
    """

    settings: dg.ResourceDependency[Settings]

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Migration]:
        """The migration, connected. Every job asks for it, so it notes the run's process, and tells of it."""
        run_id = context.run.run_id if context.run is not None else None
        if context.instance is not None and run_id is not None:
            tag_itself(context.instance, run_id, WORKER_TAG, this_process())
        with Migration.opened(self.settings, run_id=run_id) as migration, ExitStack() as stack:
            with suppress(BgePipelineError):  # whoever asks for the table says what is wrong with its settings
                if run_id is not None:
                    stack.enter_context(RunHeartbeat(migration.database, migration.target, run_id))
            yield migration


class EmbeddingsResource(dg.ConfigurableResource[EmbeddingsService]):
    """The EmbeddingsService of EMBEDDING_MODEL, loaded once for all steps of a run; releases the device as it ends."""

    migration: dg.ResourceDependency[Migration]

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[EmbeddingsService]:
        """The service, its model loaded."""
        with ExitStack() as stack:
            try:
                service = stack.enter_context(open_service(self.migration))
            except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
                if context.log is not None and context.run is not None:
                    context.log.warning(
                        "interrupted while the model was loaded, before anything was done. Next: %s",
                        launch_again(context.run),
                    )
                raise
            yield service


def resources(table: ServedTable) -> dict[str, Any]:
    """The table's resources, under the names that its assets and ops ask for."""
    # Typed as Any: Dagster's types do not tell that a resource configured at launch stands for what it makes.
    settings: Any = _settings_of(table).configure_at_launch()
    migration = MigrationResource(settings=settings)
    made = {"settings": settings, "migration": migration, "embeddings": EmbeddingsResource(migration=migration)}
    return {table.called(name): resource for name, resource in made.items()}


def _settings_of(served: ServedTable) -> type[SettingsResource]:
    """A class of its own, since what a resource is given as a value could be changed in the launchpad."""

    class SettingsOfTable(SettingsResource):
        __doc__ = SettingsResource.__doc__
        table: ClassVar[ServedTable] = served

    return SettingsOfTable
