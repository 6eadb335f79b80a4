"""Pause and resume: every run obeys, whoever said it and from wherever, and all who look agree on who came last."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import uuid

import pytest
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.database.journal import read_journal
from bge_pipeline.database.pause import PauseReader, read_pause
from bge_pipeline.database.privileges import missing_privileges
from bge_pipeline.errors import PhaseError, ReadOnlyDatabase
from bge_pipeline.phases import brakes
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.companion import CompanionKeeper
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import pause, paused_by, resume
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    agreed,
    application,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector


@pytest.fixture
def expanded(database, migration):
    expand(migration, ENCODER.space)
    return database


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "bge_pipeline")
    return caplog


def embedded(database):
    return 300 - len(pending_ids(database))


class TestRuns:
    def test_a_run_waits_while_it_is_paused_and_goes_on_after_resume(self, expanded, make_settings, log, monkeypatch):
        monkeypatch.setattr(brakes, "_PAUSE_LOOK_SECONDS", 0.01)
        settings, counts = make_settings(backfill_batch_rows=10), []

        def progress(state):
            if state.written and not counts and not state.held:
                pause(Migration(expanded, settings), by="anna@desk", reason="the shop is slow")
            if state.held:
                assert "paused by anna@desk" in state.held
                assert "(the shop is slow); bge-pipeline resume" in state.held
                counts.append((state.written, embedded(expanded)))
                if len(counts) == 3:
                    resume(Migration(expanded, settings), by="ben@desk")

        result = backfill(Migration(expanded, settings), ENCODER, on_progress=progress)
        assert len(set(counts)) == 1
        assert counts[0][0] == counts[0][1] < 300
        assert (result.rows, result.pending_after) == (300, 0)
        assert result.held_seconds["paused"] > 0
        assert len([line for line in log.messages if "is held back: paused by anna@desk" in line]) == 1
        assert len([line for line in log.messages if "goes on: no longer paused by anna@desk" in line]) == 1
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_a_new_run_says_that_it_is_paused_and_writes_nothing(self, expanded, settings, log):
        pause(Migration(expanded, settings), by="anna@desk")
        held = []

        def progress(state):
            held.append((state.held, embedded(expanded)))
            if len(held) == 1:
                resume(Migration(expanded, settings))

        assert backfill(Migration(expanded, settings), ENCODER, on_progress=progress).rows == 300
        assert held[0][0].startswith("paused by anna@desk at 20")
        assert held[0][1] == 0
        assert "held back: paused by anna@desk" in log.text

    def test_a_stop_ends_a_run_that_is_paused(self, expanded, settings):
        pause(Migration(expanded, settings))
        stop = threading.Event()
        result = backfill(Migration(expanded, settings), ENCODER, on_progress=lambda _: stop.set(), stop=stop)
        assert (result.rows, result.pending_after) == (0, 300)

    def test_embed_ends_at_once_and_loads_no_model(self, expanded, make_settings, monkeypatch):
        monkeypatch.setattr("bge_pipeline.phases.embed.open_service", lambda *_: pytest.fail("a model was loaded"))
        pause(Migration(expanded, make_settings()), by="anna@desk")
        result = embed_pending(Migration(expanded, make_settings()))
        assert result.backfill is None
        assert result.as_metadata()["paused"]["by"] == "anna@desk"

    def test_columns_are_not_exchanged_while_it_is_paused(self, migration):
        fill(migration)
        pause(migration)
        thread = threading.Thread(target=swap, args=(migration,))
        thread.start()
        try:
            thread.join(1)
            assert thread.is_alive(), "it waits"
            assert require_table(migration).phase == "backfilled"
        finally:
            resume(migration)
            thread.join()
        assert require_table(migration).phase == "swapped"

    def test_the_companion_column_waits_too(self, database, make_settings):
        settings = make_settings()
        fill_and_swap(Migration(database, settings))
        execute(database, "ALTER TABLE segments DROP COLUMN embedding_1536")
        other = make_settings(embedding_dimensions=256)
        keeper = CompanionKeeper(Migration(database, other))
        expand(Migration(database, agreed(Migration(database, other))), _space_of(256))
        execute(database, "UPDATE segments SET text = text || ' more' WHERE id = 1")
        pause(Migration(database, other))
        keeper.embed_pending(threading.Event())
        assert keeper.result().pending == 1
        resume(Migration(database, other))
        keeper.embed_pending(threading.Event())
        keeper.close()
        assert keeper.result().pending == 0


def _space_of(dimensions):
    from bge_pipeline.embedding.hashing import HashingEncoder

    return HashingEncoder(dimensions).space


class TestWhoCameLast:
    def test_pausing_twice_changes_nothing_and_names_the_first(self, expanded, settings):
        assert pause(Migration(expanded, settings), by="anna@desk", reason="first").changed
        again = pause(Migration(expanded, settings), by="ben@desk", reason="second")
        assert (again.changed, again.paused, again.latest.by) == (False, True, "anna@desk")
        assert resume(Migration(expanded, settings), by="ben@desk").changed
        again = resume(Migration(expanded, settings), by="anna@desk")
        assert (again.changed, again.paused, again.latest.by) == (False, False, "ben@desk")

    def test_resuming_what_was_never_paused_is_no_error(self, expanded, settings):
        result = resume(Migration(expanded, settings))
        assert (result.changed, result.paused, result.latest) == (False, False, None)

    @pytest.mark.parametrize("later", ["pause", "resume"])
    def test_of_two_at_once_the_later_number_counts_whichever_commits_last(self, expanded, later):
        """Each inserts while the other's transaction is open, so that neither sees the other."""
        earlier = "resume" if later == "pause" else "pause"
        insert = "INSERT INTO segments_embedding_journal (act, facts) VALUES ('{0}', '{{\"by\": \"{0}\"}}')"
        reader = PauseReader(SEGMENTS)

        def seen():
            with expanded.autocommit() as connection:
                fresh = PauseReader(SEGMENTS).look(connection)
                return {fresh, reader.look(connection)}

        with application(expanded) as one, application(expanded) as two:
            one.exec_driver_sql(insert.format(earlier))
            two.exec_driver_sql(insert.format(later))
            two.commit()
            (before,) = seen()
            one.commit()
            (after,) = seen()
        assert before == after
        assert (after.by, after.paused) == (later, later == "pause")

    def test_commands_pressed_at_once_all_tell_what_stands(self, expanded, settings):
        for _ in range(5):
            results, pressed = [], threading.Barrier(4)

            def press(act, results=results, pressed=pressed):
                pressed.wait()
                results.append(act(Migration(expanded, settings)))

            threads = [threading.Thread(target=press, args=(act,)) for act in (pause, resume, pause, resume)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            stands = paused_by(Migration(expanded, settings))
            latest = max((result.latest for result in results if result.latest), key=lambda entry: entry.number)
            assert (stands is not None) == latest.paused

    def test_a_reader_sees_a_journal_that_was_made_anew(self, expanded, settings):
        reader = PauseReader(SEGMENTS)

        def look():
            with expanded.autocommit() as connection:
                return reader.look(connection)

        for _ in range(3):
            pause(Migration(expanded, settings))
            resume(Migration(expanded, settings))
        pause(Migration(expanded, settings))
        assert look().paused
        collapse(Migration(expanded, settings))
        assert look() is None
        expand(Migration(expanded, settings), ENCODER.space)
        assert look() is None
        pause(Migration(expanded, settings), by="anna@desk")
        assert look().by == "anna@desk"

    def test_a_long_journal_is_read_once(self, expanded, settings):
        execute(
            expanded,
            "INSERT INTO segments_embedding_journal (act, facts) SELECT 'backfill', '{}' FROM generate_series(1, 5000)",
        )
        pause(Migration(expanded, settings))
        execute(
            expanded,
            "INSERT INTO segments_embedding_journal (act, facts) SELECT 'backfill', '{}' FROM generate_series(1, 5000)",
        )
        execute(expanded, "ANALYZE segments_embedding_journal")
        reader = PauseReader(SEGMENTS)
        with expanded.autocommit() as connection:
            assert reader.look(connection).paused
            assert reader.look(connection).paused  # which lies far before what is looked at now
            plan = connection.execute(
                text(
                    "EXPLAIN SELECT number FROM segments_embedding_journal WHERE act IN ('pause', 'resume') "
                    "AND number > (SELECT max(number) FROM segments_embedding_journal) - 1000 ORDER BY number DESC LIMIT 1"
                )
            )
            assert "Index Scan" in " ".join(plan.scalars())


class TestWhereItStands:
    def test_it_outlives_the_process_and_the_machine_that_paused(self, expanded, settings):
        script = (
            "import time; from bge_pipeline.phases.migration import Migration\n"
            "from bge_pipeline.phases.pause import pause; from bge_pipeline.settings import load_settings\n"
            "with Migration.opened(load_settings()) as migration:\n"
            " pause(migration, by='anna@gone'); print('paused', flush=True); time.sleep(600)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment(settings), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "paused\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert read_status(Migration(expanded, settings)).paused.by == "anna@gone"
        assert resume(Migration(expanded, settings), by="ben@desk").changed
        assert read_status(Migration(expanded, settings)).paused is None

    def test_status_shows_who_when_and_why_and_what_to_run(self, expanded, settings):
        pause(Migration(expanded, settings), by="anna@desk", reason="the shop is slow")
        status = read_status(Migration(expanded, settings))
        found = status.as_metadata()["paused"]
        assert (found["by"], found["reason"], found["paused"]) == ("anna@desk", "the shop is slow", True)
        assert found["at"].startswith("20")
        assert status.next_step.startswith("bge-pipeline resume")

    def test_without_a_name_it_is_the_user_on_this_machine(self, expanded, settings):
        by = pause(Migration(expanded, settings)).latest.by
        assert "@" in by

    def test_reports_of_phases_do_not_see_it(self, expanded, settings):
        pause(Migration(expanded, settings))
        with expanded.autocommit() as connection:
            assert [entry.act for entry in read_journal(connection, SEGMENTS)] == ["expand"]
            assert [entry.act for entry in read_journal(connection, SEGMENTS, "pause")] == ["pause"]

    def test_a_table_without_a_migration_has_nothing_to_pause(self, migration):
        for act in (pause, resume):
            with pytest.raises(PhaseError, match=r"no migration of .* has begun"):
                act(migration)
        assert read_status(migration).paused is None

    def test_a_database_that_takes_no_changes_is_named(self, expanded, settings):
        execute(expanded, f"ALTER DATABASE {expanded.url.database} SET default_transaction_read_only = on")
        with Database(expanded.url) as fresh, pytest.raises(ReadOnlyDatabase):
            pause(Migration(fresh, settings))


class TestRoles:
    @pytest.fixture
    def role(self, expanded):
        name = f"role_{uuid.uuid4().hex[:8]}"
        execute(expanded, f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        yield name
        execute(expanded, f"DROP OWNED BY {name} CASCADE")
        execute(expanded, f"DROP ROLE {name}")

    @pytest.fixture
    def as_role(self, expanded, role):
        with Database(expanded.url.set(username=role, password="secret")) as theirs:
            yield theirs

    def test_a_role_that_only_fills_pauses_resumes_and_obeys(self, expanded, as_role, settings):
        table = require_table(Migration(expanded, settings)).table
        with as_role.autocommit() as connection:
            lacking = missing_privileges(connection, table, "embedding_384", alters=False)
        for privilege in lacking:
            execute(expanded, privilege.remedy)
        assert pause(Migration(as_role, settings)).paused
        held = []

        def progress(state):
            held.append(state.held)
            resume(Migration(as_role, settings))

        assert backfill(Migration(as_role, settings), ENCODER, on_progress=progress).rows == 300
        assert held[0].startswith("paused by")

    def test_a_role_that_may_not_read_the_journal_still_sees_the_status(self, expanded, as_role, role, settings):
        pause(Migration(expanded, settings))
        execute(expanded, f"GRANT SELECT ON segments, segments_embedding_quarantine TO {role}")
        status = read_status(Migration(as_role, settings))
        assert (status.phase, status.paused) == ("expanded", None)
        with as_role.autocommit() as connection:
            assert read_pause(connection, SEGMENTS) is None
