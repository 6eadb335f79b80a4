"""Sessions that take only the processor time that nobody else wants: which do, which cannot, and that no other becomes one."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pytest
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.database.giving_way import give_way
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.database.index_build import build_concurrently
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.writer import CommitRules, Destination, VectorWriter
from bge_pipeline.phases.readable import waiting_briefly
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.support import SEGMENTS, application, execute, wait_until

pytestmark = [
    pytest.mark.pgvector,
    pytest.mark.skipif(sys.platform != "linux", reason="the idle class is Linux's"),
]


@pytest.fixture
def polite(database):
    """A Database whose sessions give way, on a server whose processes the tests may change."""
    with Database(database.url, gives_way=True) as polite:
        with polite.autocommit() as connection:
            can = give_way(connection)
            connection.invalidate()
        if not can:
            pytest.skip("the server of the tests is on another machine or belongs to another user")
        yield polite


def process_of(connection):
    return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()


def gives_way(process):
    try:
        return os.sched_getscheduler(process) == os.SCHED_IDLE
    except ProcessLookupError:  # its session has ended since it was listed
        return False


def all_that_give_way(database):
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    return [process for (process,) in execute(database, query) if gives_way(process)]


@contextmanager
def forwarding(url):
    """URL of a socket behind which this process passes on what the server says, as a pooler does."""
    name = f".s.PGSQL.{url.query.get('port', url.port or 5432)}"
    with TemporaryDirectory(prefix="bge-fw-") as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/{name}")
        listening.listen()

        def copy(source, sink):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        def serve():
            client, _ = listening.accept()
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(f"{url.query.get('host') or url.host}/{name}")
                back = threading.Thread(target=copy, args=(server, client))
                back.start()
                copy(client, server)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield url.set(host=None).update_query_dict({"host": folder})
        thread.join()


def test_the_process_of_the_session_gives_way_and_no_other_does(polite):
    with polite.autocommit() as connection, polite.autocommit() as other:
        process = process_of(connection)
        listener = psutil.Process(process).ppid()
        assert not gives_way(process)
        assert polite.give_way(connection)
        assert gives_way(process)
        assert not gives_way(process_of(other))
        assert not gives_way(listener)
        group = Path(f"/proc/{process}/autogroup")
        if group.exists():
            assert group.read_text().split()[-1] == "5"
            assert Path(f"/proc/{listener}/autogroup").read_text().split()[-1] == "0"
        connection.invalidate()


def test_a_database_gives_way_as_the_settings_say(polite, monkeypatch):
    monkeypatch.delenv("SESSION_PRIORITY")
    url = polite.url.render_as_string(hide_password=False)
    for chosen, expected in (({}, True), ({"session_priority": "normal"}, False)):
        settings = load_settings(database_url=url, **chosen)
        with Database.from_settings(settings) as database, database.autocommit() as connection:
            assert database.give_way(connection) is expected
            assert gives_way(process_of(connection)) is expected
            connection.invalidate()


def test_what_a_pooler_serves_is_left_alone(polite):
    with forwarding(polite.url) as url, Database(url, gives_way=True) as database:
        with database.autocommit() as connection:
            process = process_of(connection)
            assert database.give_way(connection) is False
            assert not gives_way(process)
            connection.invalidate()
        database.close()


def test_a_process_of_another_user_is_left_alone(polite, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    with polite.autocommit() as connection:
        monkeypatch.setattr(os, "sched_setscheduler", refuse)
        assert polite.give_way(connection) is False
        assert execute(polite, "SELECT 1") == [(1,)]


def test_the_session_that_reads_ends_with_the_reading(polite):
    with waiting_briefly(polite) as connection:
        reader = process_of(connection)
        assert gives_way(reader)
    with polite.autocommit() as connection:
        assert process_of(connection) != reader
        assert not gives_way(process_of(connection))


def test_the_session_that_builds_an_index_gives_way_until_it_ends(polite):
    with application(polite) as other:
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1")
        statement = text("CREATE INDEX CONCURRENTLY ours ON segments (start_sec)")
        thread = threading.Thread(
            target=build_concurrently, args=(polite, SEGMENTS, "ours", statement), kwargs={"column": "start_sec"}
        )
        thread.start()
        wait_until(
            lambda: execute(
                polite,
                "SELECT FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting%'",
            )
        )
        ((builder,),) = execute(
            polite, "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"
        )
        assert all_that_give_way(polite) == [builder]
        other.rollback()
        thread.join()
    wait_until(lambda: not all_that_give_way(polite))


@pytest.mark.parametrize(("max_lock_ms", "still"), [(60_000, True), (0.000_1, False)])
def test_the_session_that_writes_gives_way_until_writers_would_wait_for_it(polite, column, max_lock_ms, still):
    execute(polite, "INSERT INTO notes SELECT n, 'text ' || n FROM generate_series(1, 5) n")
    with polite.autocommit() as connection:
        (batch,) = read_pending(connection, column, "v", 100)
    vectors = np.zeros((5, 2), np.float32)
    rules = CommitRules(max_lock_ms, 1_000)
    with closing(VectorWriter(polite, Destination(column, "v", 3, INTEGERS, 2), rules)) as writer:
        assert writer.write(batch.only(range(2)), vectors[:2]).rows == 2
        wait_until(lambda: len(all_that_give_way(polite)) == still)  # a session that is left ends a moment later
        assert writer.write(batch.only(range(2, 5)), vectors[2:]).rows == 3
        assert len(all_that_give_way(polite)) == still
    wait_until(lambda: not all_that_give_way(polite))
