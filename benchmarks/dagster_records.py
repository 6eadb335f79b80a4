"""Dagster's records of a backfill with thousands of runs: one is written by Dagster, the others are copies of its rows."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, StepMaterializationData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import DagsterRun
from sqlalchemy import Connection, create_engine, text

from bge_pipeline.orchestration.names import BACKFILLED
from bge_pipeline.orchestration.storage import dagster_database_url
from bge_pipeline.settings import Settings

ASSET = dg.AssetKey(BACKFILLED)
JOB = "__ASSET_JOB"
BACKFILL = "measured"

_COLUMNS = """
SELECT column_name, data_type IN ('text', 'character varying') AS is_text FROM information_schema.columns
WHERE table_name = :table AND table_schema = current_schema() AND column_name <> 'id' ORDER BY ordinal_position
"""
# Partitions in their order, from 0, each with the number of its run.
_PARTITIONS = """
SELECT partition, row_number() OVER (ORDER BY partition) - 1 AS number FROM dynamic_partitions
WHERE partitions_def_name = 'id_ranges'
"""
_RUN_ID = "'00000000-0000-4000-8000-' || lpad(number::text, 12, '0')"
_DONE = f"""
UPDATE runs SET status = 'SUCCESS', run_body = replace(run_body, 'RunStatus.QUEUED', 'RunStatus.SUCCESS')
FROM (SELECT {_RUN_ID} AS run_id FROM ({_PARTITIONS}) p WHERE number >= :failed) done WHERE runs.run_id = done.run_id
"""


def launch(instance: dg.DagsterInstance, settings: Settings, keys: Sequence[str]) -> None:
    """A backfill of all partitions, the runs of which wait in the queue."""
    from bge_pipeline.definitions import defs

    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id=BACKFILL,
            asset_graph=defs.resolve_asset_graph(),
            partition_names=list(keys),
            asset_selection=[ASSET],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
    )
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("bge_pipeline"), "__repository__")
    run = DagsterRun(
        job_name=JOB,
        run_id=_run_id(0),
        status=dg.DagsterRunStatus.QUEUED,
        asset_selection=frozenset({ASSET}),
        remote_job_origin=RemoteJobOrigin(repository, JOB),
        tags={"dagster/partition": keys[0], "dagster/backfill": BACKFILL},
    )
    instance.add_run(run)
    planned = AssetMaterializationPlannedData(ASSET, partition=keys[0])
    event = DagsterEvent.build_asset_materialization_planned_event(JOB, BACKFILLED, planned)
    instance.report_dagster_event(event, run.run_id)
    with create_engine(dagster_database_url(settings)).begin() as connection:
        for table in ("runs", "run_tags", "event_logs"):
            _copy(connection, table, 0, keys[0])
        connection.execute(text("ANALYZE"))


def finish(instance: dg.DagsterInstance, settings: Settings, keys: Sequence[str], failed: int) -> None:
    """The first so many partitions have failed, all others are materialized, and the backfill is over."""
    for number in range(failed):
        run = instance.get_run_by_id(_run_id(number))
        assert run is not None
        instance.report_run_failed(run)
    event = DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
        job_name=JOB,
        event_specific_data=StepMaterializationData(dg.AssetMaterialization(ASSET, partition=keys[failed]), []),
    )
    instance.report_dagster_event(event, _run_id(failed))
    with create_engine(dagster_database_url(settings)).begin() as connection:
        _copy(connection, "event_logs", failed, keys[failed], "AND t.dagster_event_type = 'ASSET_MATERIALIZATION'")
        connection.execute(text(_DONE), {"failed": failed})
        connection.execute(text("ANALYZE"))
    backfill = instance.get_backfill(BACKFILL)
    assert backfill is not None
    instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_FAILED))


def _copy(connection: Connection, table: str, template: int, key: str, where: str = "") -> None:
    """Copy the rows of the run of that number for every run behind it, with its id and its partition in their place."""
    columns = connection.execute(text(_COLUMNS), {"table": table}).all()
    names = ", ".join(f'"{column.column_name}"' for column in columns)
    values = ", ".join(
        f'replace(replace(t."{column.column_name}", :run_id, {_RUN_ID}), :key, p.partition)'
        if column.is_text
        else f't."{column.column_name}"'
        for column in columns
    )
    connection.execute(
        text(
            f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} t CROSS JOIN ({_PARTITIONS}) p "
            f"WHERE t.run_id = :run_id AND p.number > :template {where} ORDER BY p.number, t.id"
        ),
        {"run_id": _run_id(template), "key": key, "template": template},
    )


def _run_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"
