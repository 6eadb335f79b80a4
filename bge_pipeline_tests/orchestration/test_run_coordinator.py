"""Which runs are for the machines with a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext

from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.names import BACKFILLED, SCHEMA
from bge_pipeline.orchestration.run_coordinator import RoutingRunCoordinator

QUEUE = "dagster-celery/queue"
LOCATION = RegisteredCodeLocationOrigin("bge_pipeline")
CONFIG = {"max_concurrent_runs": 3, "backfill_tags": {QUEUE: "gpu"}, "other_tags": {QUEUE: "small"}}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def submitted(
    instance: dg.DagsterInstance, job: str, *assets: str, config: object = CONFIG, **tags: str
) -> dg.DagsterRun:
    """A run of a job, or of some of its assets as the UI launches them, as it stands in the queue."""
    coordinator = RoutingRunCoordinator.from_config_value(None, config)
    coordinator.register_instance(instance)
    run = instance.create_run_for_job(
        defs.resolve_job_def(job),
        asset_selection=frozenset(map(dg.AssetKey, assets)) or None,
        tags=tags,
        remote_job_origin=RemoteRepositoryOrigin(LOCATION, "__repository__").get_job_origin(job),
    )
    return coordinator.submit_run(SubmitRunContext(run, workspace=None))


@pytest.mark.parametrize(
    ("job", "assets", "queue"),
    [
        ("backfill_job", (), "gpu"),
        ("__ASSET_JOB", (BACKFILLED,), "gpu"),
        ("__ASSET_JOB", (SCHEMA, BACKFILLED), "small"),
        ("expand_job", (), "small"),
        ("swap_job", (), "small"),
        ("report_job", (), "small"),
        ("embed_pending_job", (), "small"),
    ],
)
def test_a_run_that_only_fills_partitions_goes_to_the_gpus(
    records: dg.DagsterInstance, job: str, assets: tuple[str, ...], queue: str
):
    run = submitted(records, job, *assets)

    assert (run.status, run.tags[QUEUE]) == (dg.DagsterRunStatus.QUEUED, queue)


def test_a_tag_that_a_person_gave_stays(records: dg.DagsterInstance):
    assert submitted(records, "backfill_job", **{QUEUE: "spot"}).tags[QUEUE] == "spot"


def test_a_tag_of_several_values_is_written_as_json(records: dg.DagsterInstance):
    wanted = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}

    run = submitted(records, "backfill_job", config={"backfill_tags": {"dagster-k8s/config": wanted}})

    assert json.loads(run.tags["dagster-k8s/config"]) == wanted


def test_it_queues_as_dagsters_own_does():
    coordinator = RoutingRunCoordinator.from_config_value(None, CONFIG)

    assert coordinator.get_run_queue_config().max_concurrent_runs == 3
