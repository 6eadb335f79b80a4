"""What holds a real backfill back: rows a second, standbys and slots that lag, and the application's search."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.journal import read_journal
from bge_pipeline.database.replication_lag import count_hidden_standbys, find_lags
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.phases import search_brake
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.search_brake import Backoff, SearchBrake
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    Wrapped,
    application,
    execute,
    pending_ids,
    scalar,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

BATCHES_OF_TEN = {"backfill_batch_rows": 10, "old_index": "keep"}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "bge_pipeline")
    return caplog


def told(log, words):
    return [line for line in log.messages if words in line]


def test_a_limit_of_rows_a_second_is_kept_and_told(database, make_settings, log):
    settings = make_settings(max_rows_per_second=600)
    expand(Migration(database, settings), ENCODER.space)
    held = []
    result = backfill(Migration(database, settings), ENCODER, on_progress=lambda state: held.append(state.held))
    assert result.rows / result.seconds < 900  # a second's worth may be made up for
    assert result.held_seconds["rate"] > 0
    assert "at most 600 rows/s (MAX_ROWS_PER_SECOND)" in held
    assert len(told(log, "held back: at most 600 rows/s")) == 1
    with database.autocommit() as connection:
        (entry,) = read_journal(connection, SEGMENTS, "backfill")
    assert entry.facts["held_seconds"]["rate"] == pytest.approx(result.held_seconds["rate"])
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_without_limits_nothing_is_held(migration):
    expand(migration, ENCODER.space)
    assert backfill(migration, ENCODER).held_seconds == {}


class TestReplication:
    def fall_behind(self, database):
        """Four megabytes of log."""
        execute(database, "SELECT pg_logical_emit_message(false, 'x', repeat('x', 4 * 1024 * 1024), true)")

    def test_a_slot_that_lags_holds_the_backfill_until_it_has_caught_up(self, database, make_settings, log):
        settings = make_settings(max_replication_lag_mb=1, **BATCHES_OF_TEN)
        expand(Migration(database, settings), ENCODER.space)
        execute(database, "SELECT pg_create_physical_replication_slot('lagging', true)")
        self.fall_behind(database)
        counts = []

        def progress(state):
            if state.held:
                counts.append((state.written, 300 - len(pending_ids(database))))
                assert "'lagging', which nobody reads now, lags" in state.held
                if len(counts) == 2:
                    execute(database, "SELECT pg_drop_replication_slot('lagging')")

        try:
            result = backfill(Migration(database, settings), ENCODER, on_progress=progress)
        finally:
            execute(
                database,
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'lagging'",
            )
        assert counts == [(0, 0)] * 2
        assert (result.rows, result.pending_after) == (300, 0)
        assert result.held_seconds["replication"] > 0
        assert len(told(log, "is held back: replication slot 'lagging'")) == 1
        assert len(told(log, "goes on: no longer replication slot 'lagging'")) == 1

    def test_a_standby_that_lags_holds_it_too(self, make_settings, log):
        primary = OwnServer.temporary()
        servers = [primary]
        try:
            standby = primary.standby(follows=True)
            servers.append(standby)
            settings = make_settings(
                database_url=primary.url.render_as_string(), max_replication_lag_mb=1, **BATCHES_OF_TEN
            )
            with Database(primary.url) as database, Database(standby.url) as replica:
                create_demo_table(database, settings, 30)
                expand(Migration(database, settings), ENCODER.space)
                wait_until(lambda: scalar(database, "SELECT count(*) FROM pg_stat_replication") == 1, 30)
                execute(replica, "SELECT pg_wal_replay_pause()")
                wait_until(lambda: scalar(replica, "SELECT pg_get_wal_replay_pause_state()") == "paused")
                self.fall_behind(database)
                held = []

                def progress(state):
                    if state.held:
                        held.append(state.held)
                        execute(replica, "SELECT pg_wal_replay_resume()")

                result = backfill(Migration(database, settings), ENCODER, on_progress=progress)
                execute(database, "CREATE ROLE stranger LOGIN")
                with Database(database.url.set(username="stranger")) as stranger, stranger.autocommit() as connection:
                    assert find_lags(connection) == []
                    assert count_hidden_standbys(connection) == 1
        finally:
            for server in reversed(servers):
                server.remove()
        assert held[0].startswith("standby 'walreceiver' lags")
        assert (result.rows, result.pending_after) == (30, 0)
        assert result.held_seconds["replication"] > 0
        assert len(told(log, "goes on: no longer standby 'walreceiver'")) == 1

    def test_a_slot_that_is_lost_lags_no_more(self):
        server = OwnServer.temporary()
        try:
            server.set(wal_level="logical", max_slot_wal_keep_size="1MB", fsync="off")
            with Database(server.url) as database:
                execute(database, "SELECT pg_create_logical_replication_slot('lost', 'pgoutput')")
                with database.autocommit() as connection:
                    assert [lag.name for lag in find_lags(connection)] == ["lost"]
                    for _ in range(2):
                        connection.exec_driver_sql("SELECT pg_switch_wal()")
                        self.fall_behind(database)
                    connection.exec_driver_sql("CHECKPOINT")
                    assert scalar(database, "SELECT wal_status FROM pg_replication_slots") == "lost"
                    assert find_lags(connection) == []
        finally:
            server.remove()

    def test_a_lag_below_the_limit_is_nothing(self, database, make_settings):
        settings = make_settings(max_replication_lag_mb=1_000)
        expand(Migration(database, settings), ENCODER.space)
        assert backfill(Migration(database, settings), ENCODER).held_seconds == {}


class TestSearch:
    def test_pauses_grow_while_search_is_slow_and_shrink_when_it_is_not(self):
        backoff, seen = Backoff(), []
        for is_slow in [True] * 9 + [False] * 9:
            backoff.take(is_slow=is_slow)
            seen.append(backoff.seconds)
        assert seen[:9] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        assert seen[9:12] == [15.0, 7.5, 3.75]
        assert seen[-1] == 0.0

    def test_noise_is_not_called_slow(self, database, make_settings):
        brake = SearchBrake(Migration(database, make_settings()), 1.5)
        brake._before = 0.0004  # as measured on an idle machine
        brake.take([0.0008] * 20)
        assert brake.words is None
        brake.take([0.004] * 20)
        assert "search takes 4.0 ms at p95, 0.4 ms before" in brake.words

    @pytest.mark.thorough
    def test_a_search_that_becomes_slow_holds_the_backfill_and_lets_it_go_again(
        self, database, make_settings, log, monkeypatch
    ):
        monkeypatch.setattr(search_brake, "_EVERY_SECONDS", 0.05)
        settings = make_settings(max_search_slowdown=1.5, **BATCHES_OF_TEN)
        expand(Migration(database, settings), ENCODER.space)
        batches = []

        def block_searches(_texts):
            """The application does something after which every search waits."""
            batches.append(1)
            if len(batches) == 5:
                with application(database) as other:
                    other.exec_driver_sql("LOCK TABLE segments IN ACCESS EXCLUSIVE MODE")
                    time.sleep(1.5)
            time.sleep(0.05)

        result = backfill(Migration(database, settings), Wrapped(before=block_searches))
        assert (result.rows, result.pending_after) == (300, 0)
        assert result.held_seconds["search"] > 0
        assert told(log, "is held back: search takes")
        assert told(log, "goes on: no longer search takes")
        assert not [thread for thread in threading.enumerate() if thread.name == "search-probe"]
        assert wrong_vectors(database, ENCODER, "embedding_384") == []

    def test_the_probe_ends_with_the_backfill_and_leaves_no_session(self, database, make_settings):
        settings = make_settings(max_search_slowdown=1_000, **BATCHES_OF_TEN)
        expand(Migration(database, settings), ENCODER.space)
        names = set()
        backfill(
            Migration(database, settings),
            ENCODER,
            on_progress=lambda _: names.update(
                row[0]
                for row in execute(
                    database, "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
                )
            ),
        )
        assert "bge-pipeline search probe" in names
        wait_until(
            lambda: (
                not execute(
                    database,
                    "SELECT FROM pg_stat_activity WHERE application_name = 'bge-pipeline search probe' "
                    "AND datname = current_database()",
                )
            )
        )

    def test_without_a_vector_index_there_is_no_probe_and_a_warning(self, database, make_settings, log):
        settings = make_settings(max_search_slowdown=1.5, old_index="drop")
        expand(Migration(database, settings), ENCODER.space)
        assert backfill(Migration(database, settings), ENCODER).rows == 300
        assert len(told(log, "MAX_SEARCH_SLOWDOWN has no effect: column 'embedding'")) == 1

    def test_a_probe_that_fails_stops_no_backfill(self, database, make_settings, log, monkeypatch):
        monkeypatch.setattr(search_brake, "_EVERY_SECONDS", 0.01)
        settings = make_settings(max_search_slowdown=1.5, **BATCHES_OF_TEN)
        expand(Migration(database, settings), ENCODER.space)

        def end_the_probe(_texts):
            time.sleep(0.02)
            execute(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'bge-pipeline search probe' AND datname = current_database()",
            )

        assert backfill(Migration(database, settings), Wrapped(before=end_the_probe)).rows == 300
        assert len(told(log, "the probe search failed")) == 1
