"""A lock that keeps readers off the table for hours, as VACUUM FULL does: every sensor ends in seconds and says who holds it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.alarm_sensors import watch_movement
from bge_pipeline.orchestration.per_table import PerTable
from bge_pipeline.orchestration.sensors import embed_new_rows, notice_old_vectors, rerun_failed_partitions, watch_status
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline_tests.orchestration.conftest import Runner
from bge_pipeline_tests.support import application

pytestmark = pytest.mark.pgvector

_SECONDS = 30


def tick(instance: dg.DagsterInstance, sensor: PerTable[dg.SensorDefinition]) -> str:
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        result = sensor.of(THE_TABLE)(context)
    return str(result.skip_message) if isinstance(result, dg.SkipReason) else "requested"


def within(seconds: float, act: Callable[[], str], database: Database) -> str:
    """What the act says while the table is locked; the lock ends before the act is waited for any longer."""
    with ThreadPoolExecutor() as pool, application(database) as busy:
        busy.execute(text("LOCK TABLE segments IN ACCESS EXCLUSIVE MODE"))
        return pool.submit(act).result(timeout=seconds)


@pytest.fixture
def backfilled(run: Runner) -> None:
    assert run("expand_job").success
    assert run.backfill().success


@pytest.mark.usefixtures("backfilled")
@pytest.mark.parametrize(
    "sensor",
    [embed_new_rows, notice_old_vectors, watch_status, watch_movement],
    ids=["embed_new_rows", "notice_old_vectors", "watch_status", "watch_movement"],
)
def test_a_tick_ends_within_seconds_and_names_the_session_in_the_way(
    instance: dg.DagsterInstance, database: Database, sensor: PerTable[dg.SensorDefinition]
):
    said = within(_SECONDS, lambda: tick(instance, sensor), database)

    assert '"public"."segments" is locked by pid ' in said
    assert "idle in transaction, last statement LOCK TABLE segments IN ACCESS EXCLUSIVE MODE" in said
    assert "a look at it was given up after 3 s" in said
    assert "is locked by" not in tick(instance, sensor)


def test_failed_partitions_are_looked_at_all_the_same(
    instance: dg.DagsterInstance, database: Database, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    assert run("expand_job").success
    with monkeypatch.context() as patched:
        patched.setenv("EMBEDDING_DIMENSIONS", "256")
        assert not run.backfill().success

    started = time.monotonic()
    assert within(_SECONDS, lambda: tick(instance, rerun_failed_partitions), database)
    assert time.monotonic() - started < _SECONDS
