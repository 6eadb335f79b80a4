"""A deployment on a table of its own; skips where Redis or dagster-celery is not installed."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from bge_pipeline.database.connection import normalise_url
from bge_pipeline.orchestration.dagster_home import environment
from bge_pipeline.orchestration.partitions import recut
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.fleet.deployment import Deployment, wait_for
from bge_pipeline_tests.fleet.encoded import FILE
from bge_pipeline_tests.fleet.queue import Queue
from bge_pipeline_tests.orchestration.conftest import dagster_template, settings
from bge_pipeline_tests.support import ENCODER

__all__ = ["dagster_template", "settings"]

Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(settings: Settings, tmp_path: Path) -> Iterator[Deploy]:
    """Makes deployments on the test's table, with settings of one's own; whatever runs of them is ended.

    `instance` names another dagster.yaml than Celery's, which alone needs Redis and dagster-celery.
    """
    made: list[Deployment] = []

    def make(instance: str = "celery/dagster.yaml", **overrides: str) -> Deployment:
        if instance.startswith("celery"):
            _require_celery()
        assert settings.dagster_database_url is not None
        records = normalise_url(settings.dagster_database_url.get_secret_value())
        variables = environment(settings) | {
            "DAGSTER_DATABASE_URL": records.render_as_string(hide_password=False),
            **overrides,
        }
        made.append(Deployment(tmp_path / "deployment", variables, instance))
        return made[-1]

    yield make
    for deployment in made:
        deployment.stop()


def _require_celery() -> None:
    missing = ["redis-server"] if shutil.which("redis-server") is None else []
    missing += [name for name in ("dagster_celery", "redis") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed; deploy/celery/README.md says how")


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The records that all of a deployment's processes share."""
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def queue(deploy: Deploy, migration: Migration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Queue]:
    """A broker that runs, and the demo's table expanded and cut; workers are the test's to start."""
    deployment = deploy(BACKFILL_BATCH_ROWS="10", **{FILE: str(tmp_path / "encoded")})
    deployment.start("redis")
    wait_for(lambda: deployment.is_well("redis"))
    expand(migration, ENCODER.space)
    for name, value in deployment.environment("here").items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        recut(instance, THE_TABLE, migration)
        yield Queue(deployment, instance)
