"""Who fills the table is seen from anywhere: real processes, one of which is killed, asleep, or may not tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from bge_pipeline.database import heartbeat
from bge_pipeline.database.connection import Database
from bge_pipeline.database.heartbeat import Heartbeat, read_workers
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.brakes import RateBrake
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.phases.status import read_status
from bge_pipeline.process import is_gone, this_process
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute

pytestmark = pytest.mark.pgvector

_WORKER = """
import sys, time
from bge_pipeline.database import heartbeat
from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable
from bge_pipeline.phases.row_totals import BackfillTotals
heartbeat.BEAT_SECONDS = 0.1
with Database(sys.argv[1]) as database, heartbeat.Heartbeat(
    database,
    TargetTable("public", "segments", ("id",), "text", "embedding"),
    "1-100",
    "a model",
    BackfillTotals(written=50),
):
    print("told", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def expanded(database, migration):
    expand(migration, ENCODER.space)
    return database


@pytest.fixture
def start(database_url, monkeypatch):
    """Starts a process that tells of itself."""
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 1.5)
    started = []

    def begin():
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "told\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def workers(database: Database):
    with database.autocommit() as connection:
        return read_workers(connection, SEGMENTS)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_process_at_work_is_seen_with_what_it_does_until_it_ends(expanded, settings, start):
    one, _ = start(), start()
    first, second = workers(expanded)
    assert (first.id_range, first.model, first.rows, first.is_silent) == ("1-100", "a model", 50, False)
    assert f"process {one.pid} on" in str(first)
    assert first.process != second.process
    wait_until(lambda: read_status(Migration(expanded, settings)).eta_seconds)
    one.communicate("\n")
    assert [worker.process for worker in workers(expanded)] == [second.process]


def test_one_that_was_killed_falls_silent_and_one_that_slept_comes_back(expanded, start):
    killed, asleep = start(), start()
    killed.kill()
    killed.wait()
    os.kill(asleep.pid, signal.SIGSTOP)
    wait_until(lambda: [worker.is_silent for worker in workers(expanded)] == [True, True])
    first, second = workers(expanded)
    assert is_gone(first.process)
    assert not is_gone(second.process)
    assert "silent for" in str(first)
    os.kill(asleep.pid, signal.SIGCONT)
    wait_until(lambda: [worker.is_silent for worker in workers(expanded)] == [True, False])


def test_a_heartbeat_whose_entry_is_gone_begins_another(expanded, start):
    start()
    execute(expanded, f"TRUNCATE {SEGMENTS.journal}")
    wait_until(lambda: workers(expanded))


def test_a_backfill_tells_of_itself_and_that_it_has_ended(expanded, settings):
    seen = []
    backfill(Migration(expanded, settings), ENCODER, on_progress=lambda _: seen.extend(workers(expanded)))
    assert {worker.process for worker in seen} == {this_process()}
    assert workers(expanded) == []
    assert read_status(Migration(expanded, settings)).workers == ()


def test_a_role_that_may_not_renew_its_entry_makes_none_and_works_on(expanded, new_role):
    url = new_role("GRANT SELECT, INSERT ON {journal} TO {role}")
    with Database(url) as limited, Heartbeat(limited, SEGMENTS, "all", "a model", BackfillTotals()) as told:
        assert told.workers == 1
        assert workers(expanded) == []


def test_without_a_journal_nobody_is_seen_and_nothing_fails(database):
    with Heartbeat(database, SEGMENTS, "all", "a model", BackfillTotals()):
        assert workers(database) == []


def test_a_limit_of_rows_a_second_is_shared_by_all_who_work():
    alone, shared = RateBrake(100), RateBrake(100, lambda: 4)
    for brake in (alone, shared):
        brake.begin()
    assert alone.seconds_left(100, 0.0) == pytest.approx(1.0, abs=0.1)
    assert shared.seconds_left(100, 0.0) == pytest.approx(4.0, abs=0.1)
    assert "among 4 processes" in shared.words


@pytest.fixture
def new_role(expanded, server_url):
    """Makes a role that may do what a statement grants; returns a URL with which it logs in."""
    role = f"teller_{os.getpid()}"

    def make(grant: str) -> str:
        execute(expanded, f"DROP ROLE IF EXISTS {role}")
        execute(expanded, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        execute(expanded, grant.format(journal=SEGMENTS.journal, role=role))
        (name,) = execute(expanded, "SELECT current_database()")[0]
        url = server_url.set(username=role, password="x", database=name, drivername="postgresql")
        return url.render_as_string(hide_password=False)

    yield make
    execute(expanded, f"DROP OWNED BY {role}")
    execute(expanded, f"DROP ROLE {role}")
