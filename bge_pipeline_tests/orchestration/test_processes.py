"""What only separate processes can show: `dagster` commands as CI types them, the daemon's ticks, the UI's end."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import Request, urlopen

import dagster as dg
import psutil
import pytest

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.orchestration.partitions import known_keys, recut, targeted_keys
from bge_pipeline.orchestration.run_history import attempts_at
from bge_pipeline.orchestration.sensors import rerun_failed_partitions
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, checks_of
from bge_pipeline_tests.support import ENCODER, make_writes_slow

pytestmark = [pytest.mark.pgvector, pytest.mark.slow]

_PATIENCE_SECONDS = 150
DEPLOY = Path(__file__).parents[2] / "deploy"
Found = TypeVar("Found")


def dagster(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A `dagster` command on the code location, in the environment of the test."""
    return subprocess.run(
        [sys.executable, "-m", "dagster", *arguments, "-m", "bge_pipeline.definitions"],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )


def execute_job(job: str, **tags: str) -> None:
    executed = dagster("job", "execute", "-j", job, "--tags", json.dumps(tags))
    assert executed.returncode == 0, executed.stderr


@pytest.mark.thorough
def test_ci_runs_every_phase_by_command(migration: Migration, instance: dg.DagsterInstance):
    execute_job("expand_job")
    assert known_keys(instance, THE_TABLE) == KEYS

    execute_job("backfill_job", **{"dagster/partition": KEYS[0]})
    assert read_status(migration).embedded == 100

    execute_job(
        "backfill_job",
        **{"dagster/asset_partition_range_start": KEYS[1], "dagster/asset_partition_range_end": KEYS[2]},
    )
    assert instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")) == set(KEYS)

    execute_job("swap_job")
    status = read_status(migration)
    assert (status.phase, status.dimensions, status.pending) == ("swapped", 384, 0)


def test_the_daemon_reruns_a_failed_partition_and_the_ui_ends_without_a_trace(
    settings: Settings, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    run("expand_job")
    run.backfill(KEYS[1], KEYS[2])
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    failed = run("backfill_job", KEYS[0])
    monkeypatch.delenv("EMBEDDING_DIMENSIONS")
    assert not failed.success

    with dagster_ui() as port:
        wait_until(lambda: KEYS[0] in instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")))
        # Another sensor of the daemon's has runs of its own.
        latest = dg.RunsFilter(job_name="backfill_job")
        rerun = wait_until(lambda: [run for run in instance.get_runs(latest, limit=1) if run.is_success])[0]
        assert answers(port)

    assert rerun.job_name == "backfill_job"
    assert rerun.tags["dagster/partition"] == KEYS[0]
    assert rerun.tags["dagster/sensor_name"] == "rerun_failed_partitions"
    assert rerun.tags["dagster/run_key"] == f"{KEYS[0]}:{failed.run_id}"


LAUNCH = """
mutation Launch($partition: String!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: "bge_pipeline.definitions", repositoryName: "__repository__", jobName: "backfill_job"
    }
    executionMetadata: {tags: [{key: "dagster/partition", value: $partition}]}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
TERMINATE = "mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }"


@pytest.mark.thorough
def test_a_run_that_a_person_terminates_is_cancelled_keeps_its_batches_and_is_not_rerun(
    database: Database, migration: Migration, instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    run("expand_job")
    make_writes_slow(database, 0.05)
    monkeypatch.setenv("BACKFILL_BATCH_ROWS", "10")
    with dagster_ui() as port:
        launched = ask(port, LAUNCH, partition=KEYS[0])["launchRun"]
        run_id = launched["run"]["runId"]
        wait_until(lambda: read_status(migration).embedded)
        assert ask(port, TERMINATE, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        ended = wait_until(lambda: [run for run in instance.get_runs() if run.run_id == run_id and run.is_finished])[0]
        assert ended.status == dg.DagsterRunStatus.CANCELED
    embedded = read_status(migration).embedded
    assert 0 < embedded < 100
    assert embedded > 0
    (attempt,) = attempts_at(instance, THE_TABLE, [KEYS[0]])[KEYS[0]]
    assert attempt.was_cancelled
    assert f"launch backfill_job, partition {KEYS[0]}, again" in next_step_of(instance, run_id)
    assert (
        "was cancelled by somebody"
        in rerun_failed_partitions.of(THE_TABLE)(dg.build_sensor_context(instance)).skip_message
    )


BACKFILL = """
mutation Backfill($partitions: [String!]!) {
  launchPartitionBackfill(backfillParams: {
    assetSelection: [{path: ["backfilled_embeddings"]}], partitionNames: $partitions
  }) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
}
"""


@pytest.fixture
def cut(migration: Migration, instance: dg.DagsterInstance) -> dg.DagsterInstance:
    """An instance that has partitions and in which nothing has ever run, so that it knows no pool."""
    expand(migration, ENCODER.space)
    assert recut(instance, THE_TABLE, migration) == KEYS
    assert not instance.event_log_storage.get_pool_limits()
    return instance


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_the_first_backfill_that_a_person_launches_loads_one_model_at_a_time_and_measures_the_quality_once(
    cut: dg.DagsterInstance,
):
    with dagster_ui() as port:
        launched = ask(port, BACKFILL, partitions=KEYS)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        wait_for_backfill(cut)

    assert_one_at_a_time(cut)
    assert [check for run in cut.get_runs() for check in checks_of(cut, run.run_id)].count("quality_gate") == 1


@pytest.mark.timeout(900)
@pytest.mark.thorough
def test_the_first_backfill_of_a_deployment_loads_one_model_at_a_time(
    cut: dg.DagsterInstance, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert settings.dagster_database_url is not None
    url = normalise_url(settings.dagster_database_url.get_secret_value()).render_as_string(hide_password=False)
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_DATABASE_URL", url)
    documented = re.search(r"^dagster (instance concurrency set .*)$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert documented is not None

    subprocess.run(
        [sys.executable, "-m", "dagster", *shlex.split(documented[1])], check=True, timeout=_PATIENCE_SECONDS
    )
    queued = dagster("job", "backfill", "-j", "backfill_job", "--all", "--noprompt")
    assert queued.returncode == 0, queued.stderr
    with dagster_daemon():
        wait_for_backfill(cut)

    assert_one_at_a_time(cut)


def wait_for_backfill(instance: dg.DagsterInstance) -> None:
    seconds = _PATIENCE_SECONDS * len(KEYS)
    wait_until(lambda: instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")) == set(KEYS), seconds)
    wait_until(lambda: all(run.is_finished for run in instance.get_runs()))


def assert_one_at_a_time(instance: dg.DagsterInstance) -> None:
    """From when the daemon takes a run off the queue until the run has ended, it takes no other."""
    records = instance.get_run_records(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
    held = sorted((taken_at(instance, record), record.end_time) for record in records)
    assert (
        sorted(key for record in records for key in targeted_keys(instance, THE_TABLE, record.dagster_run.tags)) == KEYS
    )
    overlapping = [(first, second) for first, second in pairwise(held) if second[0] < first[1]]
    assert not overlapping, held


def taken_at(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    (taken,) = instance.get_records_for_run(
        record.dagster_run.run_id, of_type=dg.DagsterEventType.PIPELINE_STARTING
    ).records
    return taken.timestamp


@contextmanager
def dagster_daemon() -> Iterator[None]:
    """The daemon of a deployment, which also loads the code, so that there need be no code server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster._daemon", "run", "-m", "bge_pipeline.definitions"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family: list[psutil.Process] = []
    try:
        yield
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=_PATIENCE_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def next_step_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """What a failed step of the run says to do."""
    (failed,) = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    event = failed.event_log_entry.dagster_event
    assert event is not None
    assert event.step_failure_data.user_failure_data is not None
    return str(event.step_failure_data.user_failure_data.metadata["next_step"].value)


def ask(port: int, query: str, **variables: object) -> dict[str, Any]:
    """What the UI's server answers to a GraphQL query."""
    request = Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=60) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer
    data: dict[str, Any] = answer["data"]
    return data


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for it")
@pytest.mark.usefixtures("instance")
def test_nothing_of_the_ui_is_left_where_its_process_is_killed():
    process, port = start_ui(Path(os.devnull))
    family: list[psutil.Process] = []
    try:
        wait_until(lambda: answers(port))
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        _, alive = psutil.wait_procs(family, timeout=_PATIENCE_SECONDS)
        assert not alive
    finally:
        for one in [process, *(one for one in family if one.is_running())]:
            one.kill()


def start_ui(said: Path) -> tuple[subprocess.Popen[bytes], int]:
    """`run_dev` in a process of its own, which writes what it says to a file, and the port on which it will listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys; from bge_pipeline.orchestration.dev_server import run_dev; "
        "from bge_pipeline.settings import load_settings; "
        f"sys.exit(run_dev(load_settings(), port={port}))"
    )
    with said.open("wb") as output:
        return subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output), port


@contextmanager
def dagster_ui(said: Path = Path(os.devnull)) -> Iterator[int]:
    """The UI on a port, what it says in a file; nothing of it is left at the end."""
    process, port = start_ui(said)
    try:
        wait_until(lambda: answers(port))
        family = psutil.Process(process.pid).children(recursive=True)
        yield port
        family = list({*family, *psutil.Process(process.pid).children(recursive=True)})
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=_PATIENCE_SECONDS)
    assert status == 0
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def wait_until(look: Callable[[], Found], seconds: float = _PATIENCE_SECONDS) -> Found:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.5)
    return found
