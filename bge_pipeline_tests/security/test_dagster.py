"""`bge-pipeline dev` for real: it listens on this machine alone, and its records, logs and processes hold no secret."""

from __future__ import annotations

import inspect
import ipaddress
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bge_pipeline.cli.tools import dev_command
from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.database.local_server import start_embedded_postgres
from bge_pipeline.orchestration.dev_server import run_dev
from bge_pipeline_tests.endpoint_server import EndpointServer, error
from bge_pipeline_tests.orchestration.test_processes import ask, dagster_ui, wait_until
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.security.canaries import API_KEY, DAGSTER_PASSWORD, PASSWORD, Sightings
from bge_pipeline_tests.support import administer

pytestmark = [pytest.mark.pgvector, pytest.mark.slow]

LAUNCH = """
mutation Launch($job: String!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "bge_pipeline.definitions", repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
STATUS = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
CONFIGURATION = "query Configuration { instance { info } version }"


@pytest.fixture
def searched(
    guarded: OwnServer, surroundings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder that is searched afterwards; `dev` begins in it, and Dagster's records have a database and a password."""
    administer(guarded.url, "CREATE DATABASE records")
    records = guarded.url.set(
        drivername="postgresql", username="bookkeeper", password=DAGSTER_PASSWORD, database="records"
    )
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_DATABASE_URL", records.render_as_string(hide_password=False))
    monkeypatch.setenv("QUALITY_GATE", "off")
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    administer(guarded.url, "DROP DATABASE records WITH (FORCE)")


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and its children take connections."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            connections = one.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


def launch(port: int, job: str) -> str:
    """Launch a job as the UI does, and wait for its end; its status."""
    launched = ask(port, LAUNCH, job=job, tags=[])["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = launched["run"]["runId"]

    def ended() -> str | None:
        status: str = ask(port, STATUS, run=run)["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    found = wait_until(ended)
    assert found is not None
    return found


def test_the_command_asks_for_this_machine_alone_unless_it_is_told_otherwise():
    assert ipaddress.ip_address(inspect.signature(dev_command).parameters["host"].default).is_loopback
    assert ipaddress.ip_address(inspect.signature(run_dev).parameters["host"].default).is_loopback


@contextmanager
def another_password(guarded: OwnServer) -> Iterator[None]:
    """The server lets `keeper` in no longer."""
    administer(guarded.url, "ALTER ROLE keeper PASSWORD 'another'")
    try:
        yield
    finally:
        administer(guarded.url, f"ALTER ROLE keeper PASSWORD '{PASSWORD}'")


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_dev_listens_on_this_machine_alone_and_runs_that_succeed_and_fail_show_no_secret(
    searched: Path, guarded: OwnServer, server: EndpointServer, sightings: Sightings
):
    with sightings.watching_processes(), dagster_ui(searched / "dev.log") as port:
        (dev,) = [
            one for one in psutil.Process().children() if any("run_dev" in word for word in one.cmdline())
        ]  # the very process that the test has started
        addresses = listening(dev)
        assert addresses, "nothing listens, so that nothing was looked at"
        assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses

        assert launch(port, "expand_job") == "SUCCESS"
        server.rule = lambda _: (401, {}, error(f"Incorrect API key {API_KEY}"))
        assert launch(port, "swap_job") == "FAILURE"
        sightings.look("the UI's configuration", str(ask(port, CONFIGURATION)))
        with another_password(guarded):
            assert launch(port, "expand_job") == "FAILURE"
        assert all(ipaddress.ip_address(address).is_loopback for address in listening(dev))
    sightings.look_into_folder(searched)
    with Database(guarded.url.set(database="records")) as records, Database(guarded.url.set(database="app")) as app:
        sightings.look_into_database(records)
        sightings.look_into_database(app)
    logs = [path for path in (searched / "home" / "dagster").rglob("*.err") if path.stat().st_size]
    assert logs, "compute logs were written, and searched"
    sightings.assert_none()


def test_the_embedded_postgres_listens_on_no_port():
    folder = Path(tempfile.mkdtemp(prefix="bge-pipeline-tests-listen-"))
    url = normalise_url(start_embedded_postgres(folder))
    server = OwnServer(folder)
    try:
        postmaster = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
        assert listening(postmaster) == set()
        assert (Path(str(url.query["host"])) / ".s.PGSQL.5432").is_socket()
    finally:
        server.remove()
        shutil.rmtree(folder, ignore_errors=True)
