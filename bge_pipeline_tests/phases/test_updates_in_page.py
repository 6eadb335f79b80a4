"""Nine updates in ten are HOT, so that no index hears of them; where they are not, whoever is to blame is named."""

from __future__ import annotations

import logging
import time

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from bge_pipeline.database import snapshots
from bge_pipeline.database.connection import Database
from bge_pipeline.database.pending import has_pending_index
from bge_pipeline.phases import room_brake
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pending_index import index_when_few_are_left
from bge_pipeline.phases.room_brake import RoomBrake
from bge_pipeline.phases.state import require_table
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    application,
    execute,
    fill_and_swap,
    pending_ids,
    scalar,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

ROWS = 3_000


@pytest.fixture
def large(database):
    """Rows enough for pages that fill up, in place of the template's, and their vector index."""
    execute(database, "DELETE FROM segments WHERE id > 1")
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text, embedding) "
        "SELECT source_id, 'v', n, n + 1, 'row ' || n || ' ' || repeat('word ', 20 + n % 40), embedding "
        f"FROM segments, generate_series(2, {ROWS}) n",
    )
    with database.autocommit() as connection:
        connection.exec_driver_sql("VACUUM FULL ANALYZE segments")
    return database


def is_indexed(database, column="embedding_384"):
    with database.autocommit() as connection:
        return has_pending_index(connection, SEGMENTS, column)


def test_nine_updates_in_ten_stay_in_their_page_and_the_table_does_not_grow(large, settings):
    expand(Migration(large, settings), ENCODER.space)
    before = scalar(large, "SELECT pg_relation_size('segments')")
    result = backfill(Migration(large, settings), ENCODER)
    assert (result.rows, result.pending_after) == (ROWS, 0)
    assert result.in_page > 0.85 * ROWS
    assert scalar(large, "SELECT pg_relation_size('segments')") < 1.3 * before
    assert wrong_vectors(large, ENCODER, "embedding_384") == []
    execute(large, "SELECT pg_stat_force_next_flush()")
    hot = "SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'segments'"
    deadline = time.monotonic() + 10
    while scalar(large, hot) < result.in_page and time.monotonic() < deadline:
        time.sleep(0.2)
    assert scalar(large, hot) == result.in_page, "what is measured is what PostgreSQL counts"


def test_a_long_transaction_in_another_database_of_the_server_is_no_hindrance(large, settings, server_url):
    """PostgreSQL looks anew for what can be cleared away only when the oldest transaction of the whole server changes."""
    expand(Migration(large, settings), ENCODER.space)
    elsewhere = create_engine(server_url, poolclass=NullPool)
    with elsewhere.connect() as other:
        other.exec_driver_sql("SELECT txid_current()")
        result = backfill(Migration(large, settings), ENCODER)
    assert result.in_page > 0.8 * ROWS


def test_the_index_of_pending_rows_comes_when_the_bulk_is_done(large, make_settings):
    settings = make_settings(backfill_batch_rows=100)
    expand(Migration(large, settings), ENCODER.space)
    assert not is_indexed(large)
    index_when_few_are_left(Migration(large, settings))
    assert not is_indexed(large), "everything is pending"
    backfill(Migration(large, settings), ENCODER)
    assert is_indexed(large)
    assert require_table(Migration(large, settings)).phase == "backfilled"
    execute(large, "UPDATE segments SET text = 'changed' WHERE id IN (SELECT id FROM segments LIMIT 5)")
    assert require_table(Migration(large, settings)).phase == "expanded"


def test_a_swap_builds_it_where_no_run_did(large, settings, monkeypatch):
    monkeypatch.setattr("bge_pipeline.phases.backfill.index_when_few_are_left", lambda *_: None)
    fill_and_swap(Migration(large, settings))
    assert is_indexed(large, "embedding")


class TestAnOldSnapshot:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(snapshots, "OLD_SECONDS", 0.1)
        monkeypatch.setattr(room_brake, "_ROWS_BETWEEN_LOOKS", 500)

    def test_is_named_with_who_keeps_it_and_the_backfill_goes_on(self, large, settings, caplog):
        expand(Migration(large, settings), ENCODER.space)
        with application(large) as other:
            other.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.exec_driver_sql("SELECT count(*) FROM sources")
            pid = other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            time.sleep(0.2)
            result = backfill(Migration(large, settings), ENCODER)
        assert result.rows == ROWS
        assert result.in_page < 0.5 * ROWS
        assert f"an old snapshot lasts: pid {pid}" in caplog.text
        assert pending_ids(large) == []
        assert not is_indexed(large), "its build would have waited; the swap makes up for it"

    def test_is_waited_for_if_that_is_asked_for(self, large):
        counts = (0, 0)
        brake = RoomBrake(large, 2.0, lambda: counts)
        assert brake.seconds_left(0, 0.0) == 0.0
        counts = (1_000, 10)
        with application(large) as other:
            other.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.exec_driver_sql("SELECT 1 FROM sources")
            time.sleep(0.2)
            assert brake.seconds_left(100, 0.0) > 0
            assert "BACKFILL_WAIT_FOR_SNAPSHOTS" in brake.words
        assert brake.seconds_left(0, 1.0) == 0.0, "it has ended"
        assert brake.words is None

    def test_is_not_waited_for_longer_than_was_said_however_often_it_is_asked(self, large, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("bge_pipeline.phases.room_brake.time.monotonic", lambda: now[0])

        def asked():
            now[0] += 0.5
            return brake.seconds_left(0, 0.0)

        brake = RoomBrake(large, 2.0, lambda: (1_000, 10))
        with application(large) as other:
            other.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.exec_driver_sql("SELECT 1 FROM sources")
            time.sleep(0.2)
            assert [asked() for _ in range(5)] == [1.0, 1.0, 1.0, 0.5, 0.0]

    def test_a_standby_that_tells_its_own_has_an_old_one_only_when_it_falls_behind(self, monkeypatch):
        monkeypatch.setattr(snapshots, "_TRANSACTIONS", 20)
        primary = OwnServer.temporary()
        servers = [primary]
        try:
            primary.set(hot_standby_feedback="on", wal_receiver_status_interval="1s", fsync="off")
            servers.append(primary.standby(follows=True))
            with Database(primary.url) as database, Database(servers[1].url) as replica:
                told = "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE backend_type = 'walsender'"
                wait_until(lambda: execute(database, told) == [(True,)], 30)
                time.sleep(0.2)
                with database.autocommit() as connection:
                    assert snapshots.old_snapshots(connection) == ()
                    with application(replica) as reader:
                        reader.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                        reader.exec_driver_sql("SELECT count(*) FROM pg_class")
                        for _ in range(50):
                            connection.exec_driver_sql("SELECT txid_current()")
                        wait_until(lambda: snapshots.old_snapshots(connection) != (), 30)
                        (words,) = snapshots.old_snapshots(connection)
                        assert "walreceiver" in words
                        assert snapshots.old_transactions(connection) == (), "no index build waits for it"
        finally:
            for server in reversed(servers):
                server.remove()

    def test_no_room_without_one_is_said_too(self, large, caplog):
        caplog.set_level(logging.INFO)
        RoomBrake(large, 0.0, lambda: (1_000, 10)).seconds_left(0, 0.0)
        assert "its rows have no room to grow" in caplog.text
