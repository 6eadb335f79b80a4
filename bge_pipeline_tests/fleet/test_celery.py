"""One backfill by several workers while workers, broker, webserver and daemon are killed: `make test-celery`."""

import re
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.names import BACKFILL_JOB, BACKFILLED
from bge_pipeline.orchestration.partitions import known_keys, targeted_keys
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.fleet.conftest import Deploy
from bge_pipeline_tests.fleet.deployment import PATIENCE_SECONDS, Deployment, wait_for
from bge_pipeline_tests.fleet.encoded import COUNTING, FILE, SECONDS, encoded
from bge_pipeline_tests.support import ENCODER, execute, scalar, wrong_vectors
from bge_pipeline_tests.written import count_writes, written

pytestmark = [pytest.mark.pgvector, pytest.mark.celery, pytest.mark.timeout(1_200)]

ROWS, PARTITION_ROWS, BATCH_ROWS = 200_000, 10_000, 1_000
MOST_IN_FLIGHT = 5 * BATCH_ROWS
"""Of one worker: a batch that is being encoded, three that wait for the writer (`RowPath`), and one that is being written."""
EVERY_97TH = "(SELECT * FROM segments WHERE id % 97 = 0) AS sample"
_WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa".split()


@pytest.fixture
def segments(database: Database) -> Database:
    """A large table in place of the demo's."""
    execute(database, "TRUNCATE segments, sources CASCADE")
    execute(database, "INSERT INTO sources (id, video_id, title) VALUES (1, 'v', 'a talk')")
    some = ", ".join(f"'{word}'" for word in _WORDS)
    execute(
        database,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text) "
        "SELECT n, 1, 'v', n, n + 1, (SELECT string_agg((ARRAY[" + some + "])[1 + abs(hashint8(n * 31 + w)) % 16] || "
        f"abs(hashint8(n + w)) % 5000, ' ') FROM generate_series(1, 12) w) FROM generate_series(1, {ROWS}) n",
    )
    execute(database, "ANALYZE segments")
    return database


def materialized(instance: dg.DagsterInstance) -> int:
    return len(instance.get_materialized_partitions(dg.AssetKey(BACKFILLED)))


def runs_of(instance: dg.DagsterInstance, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
    """Runs that fill partitions."""
    runs = instance.get_runs(dg.RunsFilter(statuses=list(statuses) or None))
    return [run for run in runs if targeted_keys(instance, THE_TABLE, run.tags)]


def wait_for_success(instance: dg.DagsterInstance, run_id: str, seconds: float = PATIENCE_SECONDS) -> None:
    wait_for(lambda: instance.get_run_by_id(run_id).is_finished, seconds)
    assert instance.get_run_by_id(run_id).is_success, instance.all_logs(run_id)[-3:]


def partly_written(database: Database) -> set[int]:
    """Numbers of the partitions of which some rows are committed and many are not."""
    rows = execute(
        database,
        f"SELECT (id - 1) / {PARTITION_ROWS} FROM writes GROUP BY 1 HAVING count(*) BETWEEN {PARTITION_ROWS // 10} AND "
        f"{PARTITION_ROWS // 2}",
    )
    return {row[0] for row in rows}


def worker_of(deployment: Deployment, run: dg.DagsterRun, workers: list[str]) -> str | None:
    return next((name for name in workers if run.run_id in deployment.tasks_of(name)), None)


def kill_in_the_middle(deployment: Deployment, instance: dg.DagsterInstance, database: Database) -> str:
    """Kill a worker half-way through a partition; the run that it had in hand."""

    def caught() -> str | None:
        partly = partly_written(database)
        for run in runs_of(instance, dg.DagsterRunStatus.STARTED):
            if int(targeted_keys(instance, THE_TABLE, run.tags)[0].split("_")[0]) - 1 in partly:
                name = worker_of(deployment, run, ["gpu1", "gpu2"])
                if name is not None:
                    deployment.kill(name)
                    return run.run_id
        return None

    return wait_for(caught)


def tell(line: str) -> None:
    """A figure for deploy/celery/README.md, past pytest's capture."""
    sys.__stdout__.write(f"\n  {line}")
    sys.__stdout__.flush()


def test_two_workers_share_a_backfill_whatever_is_killed(
    deploy: Deploy, segments: Database, migration: Migration, instance: dg.DagsterInstance, tmp_path: Path
):
    counted = tmp_path / "encoded"
    deployment = deploy(
        PARTITION_ROWS=str(PARTITION_ROWS),
        BACKFILL_BATCH_ROWS=str(BATCH_ROWS),
        MAX_PARTITION_ATTEMPTS="5",
        INDEX_METHOD="ivfflat",
        BENCHMARK_TEXTS="200",
        **{FILE: str(counted), SECONDS: "0.1"},
    )
    deployment.start("redis")
    deployment.start_dagster()
    deployment.start("small-worker", "small")
    for name in ("gpu1", "gpu2"):
        deployment.start("gpu-worker", name, options=COUNTING)
    set_pool(instance, 3)
    wait_for_success(instance, deployment.webserver.launch("expand_job"))
    keys = list(known_keys(instance, THE_TABLE))
    assert len(keys) == ROWS // PARTITION_ROWS
    count_writes(segments)

    began = time.monotonic()
    deployment.webserver.materialize(keys)
    interrupted = kill_in_the_middle(deployment, instance, segments)
    left = PARTITION_ROWS - scalar(segments, f"SELECT count(*) FROM writes WHERE {within(instance, interrupted)}")
    assert left > 0
    tell(f"a GPU worker killed with {left:,} of {PARTITION_ROWS:,} rows of its partition to go")
    deployment.start("gpu-worker", "gpu3", options=COUNTING)

    wait_for(lambda: materialized(instance) >= 6)
    deployment.kill("redis")
    time.sleep(5)
    deployment.start("redis")
    tell(f"broker killed with {materialized(instance)} of {len(keys)} partitions done, started again after 5 s")

    wait_for(lambda: materialized(instance) >= 10)
    deployment.kill("webserver")
    deployment.kill("daemon")
    before = scalar(segments, "SELECT count(*) FROM writes")
    time.sleep(10)
    meanwhile = scalar(segments, "SELECT count(*) FROM writes") - before
    tell(f"webserver and daemon killed: in the 10 s without them {meanwhile:,} rows were written")
    deployment.start("webserver")
    deployment.start("daemon")

    wait_for(lambda: materialized(instance) == len(keys), 400)
    seconds = time.monotonic() - began
    again = encoded(counted) - ROWS
    writes, rows = written(segments)
    failed = runs_of(instance, dg.DagsterRunStatus.FAILURE)
    tell(f"{ROWS:,} rows, {len(keys)} partitions in {seconds:.0f} s, faults included: {ROWS / seconds:,.0f} rows/s")
    tell(f"texts encoded twice: {again:,}; rows written twice: {writes - rows:,}; runs that failed: {len(failed)}")

    assert (writes, rows) == (ROWS, ROWS)
    assert wrong_vectors(segments, ENCODER, "embedding_384", EVERY_97TH) == []
    assert 0 <= again <= MOST_IN_FLIGHT * len(failed)
    assert interrupted in {run.run_id for run in failed}

    wait_for(lambda: deployment.is_well("webserver"))
    for job in ("swap_job", "report_job"):
        wait_for_success(instance, deployment.webserver.launch(job), 600)
    status = read_status(migration)
    assert (status.phase, status.embedded, status.pending) == ("swapped", ROWS, 0)
    assert_queues_are_kept_apart(deployment, instance, {"gpu1", "gpu2", "gpu3"})


def within(instance: dg.DagsterInstance, run_id: str) -> str:
    """An SQL condition for the ids of a run's partition."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    lower, upper = re.findall(r"\d+", targeted_keys(instance, THE_TABLE, run.tags)[0].partition("_")[2])
    return f"id BETWEEN {lower} AND {upper}"


def set_pool(instance: dg.DagsterInstance, runs: int) -> None:
    """As `dagster instance concurrency set encoder` does."""
    instance.event_log_storage.set_concurrency_slots("encoder", runs)


def assert_queues_are_kept_apart(deployment: Deployment, instance: dg.DagsterInstance, gpus: set[str]) -> None:
    on_gpus = {run_id for name in gpus for run_id in deployment.tasks_of(name)}
    for run in instance.get_runs():
        selected = {key.to_user_string() for key in run.asset_selection or ()}
        is_backfill = selected == {BACKFILLED} or (not selected and run.job_name == BACKFILL_JOB)
        assert run.tags["dagster-celery/queue"] == ("gpu" if is_backfill else "small")
    jobs = {run.job_name for run in instance.get_runs() if run.run_id in on_gpus}
    assert jobs <= {BACKFILL_JOB, "__ASSET_JOB"}
    small = {run.job_name for run in instance.get_runs() if run.run_id in deployment.tasks_of("small")}
    assert {"expand_job", "swap_job", "report_job"} <= small
    assert not small & {BACKFILL_JOB, "__ASSET_JOB"}


def test_two_daemons_at_once_write_every_row_once(
    deploy: Deploy, database: Database, migration: Migration, instance: dg.DagsterInstance, tmp_path: Path
):
    counted = tmp_path / "encoded"
    deployment = deploy(PARTITION_ROWS="30", **{FILE: str(counted), SECONDS: "0.2"})
    deployment.start("redis")
    deployment.start_dagster()
    deployment.start("daemon", "second-daemon")
    deployment.start("small-worker", "small")
    for name in ("gpu1", "gpu2"):
        deployment.start("gpu-worker", name, options=COUNTING)
    set_pool(instance, 3)
    wait_for_success(instance, deployment.webserver.launch("expand_job"))
    count_writes(database)

    deployment.webserver.materialize(list(known_keys(instance, THE_TABLE)))

    wait_for(lambda: materialized(instance) == 10)
    wait_for(lambda: all(run.is_finished for run in runs_of(instance)))
    sent = sum(
        len(re.findall(r"execute_job\[.*received", deployment.log(name).read_text())) for name in ("gpu1", "gpu2")
    )
    tell(
        f"two daemons: {len(runs_of(instance))} runs, sent {sent} times, {encoded(counted)} texts encoded for 300 rows"
    )
    assert written(database) == (300, 300)
    assert read_status(migration).pending == 0
