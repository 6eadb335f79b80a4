"""A run tells of itself for as long as it lasts, whatever it does, so that its death on another machine is noticed."""

import json

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.heartbeat import read_workers, seconds_since_heard
from bge_pipeline.database.journal import read_journal
from bge_pipeline.database.movement import seconds_since_movement
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.sensors import rerun_failed_partitions
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.orchestration.workers import WORKER_TAG
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute, scalar

pytestmark = pytest.mark.pgvector

ELSEWHERE = "another-host/4026531836/1/1.00"


@pytest.fixture
def expanded(migration: Migration) -> None:
    expand(migration, ENCODER.space)


def tell(database: Database, run_id: str, minutes: int, *, ended: bool = False) -> None:
    """An entry of the journal that this run kept fresh until so many minutes ago."""
    execute(
        database,
        f"INSERT INTO {SEGMENTS.journal} (act, at, facts) VALUES ('run', now() - :ago * interval '1 minute', "
        "CAST(:facts AS jsonb))",
        ago=minutes,
        facts=json.dumps({"process": ELSEWHERE, "run_id": run_id, "ended": ended}),
    )


@pytest.mark.usefixtures("expanded")
@pytest.mark.parametrize(
    "job",
    ["swap_job", *(pytest.param(job, marks=pytest.mark.thorough) for job in ("keep_old_current_job", "backfill_job"))],
)
@pytest.mark.parametrize(
    ("minutes", "ended", "is_failed"),
    [(10, False, True), (3 * 24 * 60, False, True), (1, False, False), (10, True, False)],
    ids=["silent", "silent for days", "alive", "ended"],
)
def test_one_on_another_machine_is_failed_when_it_is_silent_whatever_it_does(
    instance: dg.DagsterInstance, database: Database, job: str, minutes: int, ended: bool, is_failed: bool
):
    run = instance.create_run_for_job(
        defs.resolve_job_def(job), status=dg.DagsterRunStatus.STARTED, tags={WORKER_TAG: ELSEWHERE}
    )
    tell(database, "another", 10)
    tell(database, run.run_id, minutes, ended=ended)

    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        rerun_failed_partitions.of(THE_TABLE)(context)

    status = instance.get_run_by_id(run.run_id).status
    assert status == (dg.DagsterRunStatus.FAILURE if is_failed else dg.DagsterRunStatus.STARTED)


def test_every_run_tells_of_itself_and_that_it_has_ended(run: Runner, database: Database):
    done = [run("expand_job"), run("status_job"), run("backfill_job", KEYS[0])]

    told = execute(database, f"SELECT facts->>'run_id', facts->'ended' FROM {SEGMENTS.journal} WHERE act = 'run'")
    assert set(told) == {(one.run_id, True) for one in done}
    with database.autocommit() as connection:
        assert seconds_since_heard(connection, SEGMENTS, [one.run_id for one in done]) == {}
        assert read_workers(connection, SEGMENTS) == []
        assert "run" not in {entry.act for entry in read_journal(connection, SEGMENTS)}


@pytest.mark.usefixtures("expanded")
def test_it_moves_nothing(run: Runner, database: Database):
    execute(database, f"UPDATE {SEGMENTS.journal} SET at = now() - interval '1 hour'")
    run("status_job")
    assert scalar(database, f"SELECT count(*) FROM {SEGMENTS.journal} WHERE act = 'run'") == 1
    with database.autocommit() as connection:
        assert seconds_since_movement(connection, SEGMENTS) > 3_000


@pytest.mark.usefixtures("settings")
def test_without_a_journal_nothing_is_told_and_nothing_fails(run: Runner, database: Database):
    run("status_job")
    assert scalar(database, "SELECT to_regclass(:name)", name=SEGMENTS.journal) is None
