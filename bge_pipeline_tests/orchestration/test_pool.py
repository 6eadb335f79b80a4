"""The pool of the encoder: it has a limit of its own before a run is queued, and keeps what a person has set."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.event_log.base import PoolLimit

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.dagster_home import prepare_dagster_home
from bge_pipeline.orchestration.pool import register_pool
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import Runner
from bge_pipeline_tests.support import application, scalar, wait_until

pytestmark = pytest.mark.pgvector

BY_NAME = PoolLimit(name="encoder", limit=1, from_default=False)
_WAITING = """
SELECT count(*) FROM pg_locks
WHERE NOT granted AND relation = 'concurrency_limits'::regclass AND database = (SELECT oid FROM pg_database
    WHERE datname = current_database())
"""


def limits(instance: dg.DagsterInstance) -> list[PoolLimit]:
    return list(instance.event_log_storage.get_pool_limits())


def test_expand_registers_the_pool_before_there_is_a_partition_to_run(instance: dg.DagsterInstance, run: Runner):
    assert limits(instance) == []

    run("expand_job")

    assert limits(instance) == [BY_NAME]


def test_a_limit_that_a_person_has_set_is_kept(instance: dg.DagsterInstance, run: Runner):
    instance.event_log_storage.set_concurrency_slots("encoder", 3)

    run("expand_job")

    assert limits(instance) == [PoolLimit(name="encoder", limit=3, from_default=False)]


def test_a_limit_that_dagster_took_from_its_default_becomes_one_that_no_edit_of_it_undoes(
    settings: Settings, instance: dg.DagsterInstance
):
    instance.event_log_storage.initialize_concurrency_limit_to_default("encoder")
    assert limits(instance) == [PoolLimit(name="encoder", limit=1, from_default=True)]
    edit(settings, lambda config: config["concurrency"]["pools"].update(default_limit=2))

    with dg.DagsterInstance.get() as edited:
        register_pool(edited)

        assert limits(edited) == [PoolLimit(name="encoder", limit=2, from_default=False)]
        assert edited.event_log_storage.get_concurrency_info("encoder").slot_count == 2


def test_one_run_goes_at_a_time_where_the_instance_has_no_default(settings: Settings):
    edit(settings, lambda config: config.pop("concurrency"))

    with dg.DagsterInstance.get() as instance:
        assert instance.global_op_concurrency_default_limit is None
        register_pool(instance)

        assert limits(instance) == [BY_NAME]


def test_processes_that_start_together_register_it_once(settings: Settings):
    at_once = 6
    assert settings.dagster_database_url is not None

    def register(_: int) -> None:
        with dg.DagsterInstance.get() as instance:
            register_pool(instance)

    with Database(settings.dagster_database_url.get_secret_value()) as records, ThreadPoolExecutor(at_once) as threads:
        with application(records) as other:
            other.exec_driver_sql("LOCK TABLE concurrency_limits IN SHARE MODE")
            registered = threads.map(register, range(at_once))
            wait_until(lambda: scalar(records, _WAITING) == at_once, seconds=60)
        assert list(registered) == [None] * at_once

    with dg.DagsterInstance.get() as instance:
        assert limits(instance) == [BY_NAME]
        assert instance.event_log_storage.get_concurrency_info("encoder").slot_count == 1


def test_an_instance_without_pools_is_left_alone():
    with dg.DagsterInstance.ephemeral() as instance:
        register_pool(instance)


def edit(settings: Settings, change: Callable[[dict[str, Any]], object]) -> None:
    """Change dagster.yaml as a person would."""
    path = prepare_dagster_home(settings) / "dagster.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
