"""Real processes that are paused, told to end and told how far to go: what they commit, say and exit with."""

from __future__ import annotations

import json
import signal

import pytest

from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import pause
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.cli.test_commands import run  # noqa: F401 - a fixture
from bge_pipeline_tests.roads import starting_commands
from bge_pipeline_tests.support import (
    ENCODER,
    application,
    execute,
    make_writes_slow,
    scalar,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector


@pytest.fixture
def slow(database, migration):
    """A table in phase expanded, of which ten rows take a third of a second to write."""
    expand(migration, ENCODER.space)
    make_writes_slow(database, 0.03)
    return database


@pytest.fixture
def start(settings, tmp_path):
    """Starts a command; whatever is left of it ends with the test."""
    with starting_commands(settings, tmp_path) as start_command:
        yield start_command


def embedded(database):
    return scalar(database, "SELECT count(embedding_384) FROM segments")


def ended(process):
    """Its exit code, and what it said in one line."""
    _, stderr = process.communicate(timeout=60)
    return process.returncode, " ".join(stderr.split())


class TestSigterm:
    @pytest.mark.parametrize("command", ["migrate", pytest.param("embed", marks=pytest.mark.thorough)])
    def test_the_batch_in_hand_is_committed_and_the_next_run_goes_on(self, slow, start, run, command):  # noqa: F811
        process = start(command)
        wait_until(lambda: embedded(slow) > 0, 60)
        process.send_signal(signal.SIGTERM)
        code, said = ended(process)
        assert code == 143, said
        rows = embedded(slow)
        assert 0 < rows < 300
        assert rows % 10 == 0
        assert "SIGTERM: ending after the batch in hand" in said
        assert f"stopped after the batch in hand, as asked: {rows} rows were embedded in this run" in said
        assert "State: every committed batch is kept" in said
        assert f"Next: bge-pipeline {command}" in said
        assert "Traceback" not in said
        execute(slow, "DROP TRIGGER dawdle ON segments")
        assert run(command, QUALITY_GATE="off").returncode == 0
        assert wrong_vectors(slow, ENCODER, "embedding" if command == "migrate" else "embedding_384") == []

    def test_an_index_build_is_cancelled(self, slow, settings, start):
        process = start("migrate")
        wait_until(lambda: embedded(slow) > 0, 60)
        with application(slow) as other:
            other.exec_driver_sql(
                "UPDATE segments SET speaker_label = 'x' "
                "WHERE id = (SELECT min(id) FROM segments WHERE embedding_384 IS NOT NULL)"
            )
            building = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"
            wait_until(lambda: scalar(slow, building) == 1, 90)
            process.send_signal(signal.SIGTERM)
            code, said = ended(process)
            assert code == 143, said
            assert "stopped by SIGTERM State: every committed batch is kept, and no column is exchanged by half" in said
            assert "Next: bge-pipeline migrate resumes" in said
            assert scalar(slow, building) == 0
        assert read_status(Migration(slow, settings)).phase == "backfilled"

    def test_a_run_that_is_paused_ends_at_once(self, slow, settings, start):
        pause(Migration(slow, settings), by="anna@desk")
        process = start("migrate")
        waits = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name LIKE 'bge-pipeline migrate (pro%' AND datname = current_database()"
        )
        wait_until(lambda: scalar(slow, waits) == 1, 60)
        said = ""
        while "is held back: paused by anna@desk" not in said:
            said += " ".join(process.stderr.readline().split()) + " "
        process.send_signal(signal.SIGTERM)
        code, said = ended(process)
        assert (code, embedded(slow)) == (143, 0), said
        assert "0 rows were embedded in this run, 300 wait" in said

    def test_ctrl_c_is_as_it_was(self, slow, start):
        process = start("migrate")
        wait_until(lambda: embedded(slow) > 0, 60)
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
        assert code == 130, said
        assert "interrupted; every committed batch is kept" in said
        assert embedded(slow) % 10 == 0


class TestPause:
    @pytest.mark.thorough
    def test_a_run_of_another_process_waits_and_goes_on(self, slow, start, run):  # noqa: F811
        process = start("migrate")
        wait_until(lambda: embedded(slow) > 0, 60)
        paused = json.loads(run("pause", "--reason", "the shop is slow", "--json").stdout)
        assert (paused["changed"], paused["paused"]) == (True, True)
        said = ""
        while "is held back: paused by" not in said:
            said += " ".join(process.stderr.readline().split()) + " "
        rows = embedded(slow)
        status = json.loads(run("status", "--json").stdout)
        assert (status["paused"]["by"], status["paused"]["reason"]) == (paused["latest"]["by"], "the shop is slow")
        text = " ".join(run("status").stdout.split())
        assert f"paused by {paused['latest']['by']} at 20" in text
        assert "next bge-pipeline resume" in text
        assert "nothing: it was paused before" in " ".join(run("pause").stdout.split())
        assert embedded(slow) == rows < 300
        assert process.poll() is None
        skipped = run("embed")
        assert skipped.returncode == 0
        assert "nothing: paused by" in " ".join(skipped.stdout.split())
        execute(slow, "DROP TRIGGER dawdle ON segments")
        assert json.loads(run("resume", "--json").stdout)["changed"]
        code, said = ended(process)
        assert code == 0, said
        assert "goes on: no longer paused by" in said
        assert "paused" not in run("status").stdout


class TestUntil:
    @pytest.mark.thorough
    def test_it_ends_with_0_and_what_comes_next(self, database, run):  # noqa: F811
        first = run("migrate", "--until", "50%", QUALITY_GATE="off", BACKFILL_BATCH_ROWS="40")
        assert first.returncode == 0, first.stderr
        assert embedded(database) == 150
        said = " ".join(first.stdout.split())
        assert "not yet: the backfill has come as far as --until asks" in said
        assert "next bge-pipeline migrate (resumes the backfill)" in said
        assert json.loads(run("migrate", "--until", "200", "--json", QUALITY_GATE="off").stdout)["swap"] is None
        assert embedded(database) == 200
        assert run("migrate", QUALITY_GATE="off").returncode == 0
        assert json.loads(run("status", "--json").stdout)["phase"] == "swapped"

    def test_what_is_no_goal_is_refused(self, run):  # noqa: F811
        refused = run("migrate", "--until", "half")
        assert refused.returncode == 2
        assert "such as 50%" in " ".join(refused.stderr.split())


def test_the_help_tells_every_exit_code(run):  # noqa: F811
    assert "143 ended by SIGTERM" in " ".join(run("--help").stdout.split())
