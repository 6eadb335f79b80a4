"""A strong lock is waited for briefly and again; the application never queues behind a long wait."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.locks import in_short_transaction, with_short_lock_wait
from bge_pipeline.database.table_lock import lock_table
from bge_pipeline.errors import LockNotAcquired
from bge_pipeline_tests.support import SEGMENTS, application, columns_of, execute, scalar, wait_until

pytestmark = pytest.mark.pgvector


def add_column(connection):
    connection.exec_driver_sql("ALTER TABLE segments ADD COLUMN n int")
    return "added"


def test_work_is_done_in_one_transaction(database, settings):
    assert in_short_transaction(database, settings, "test", add_column) == "added"
    assert "n" in columns_of(database)


def test_a_table_that_stays_busy_is_given_up_and_left_as_it_was(database, settings):
    with application(database) as other:
        other.exec_driver_sql("SELECT * FROM segments LIMIT 1")
        with pytest.raises(LockNotAcquired, match="add it: could not lock the table within 200 ms, 3 times") as refused:
            in_short_transaction(database, settings, "add it", add_column)
    assert refused.value.state == "nothing was changed by this step"
    assert "LOCK_TIMEOUT_MS" in refused.value.next_step
    assert "n" not in columns_of(database)


def test_a_table_that_becomes_free_between_attempts_is_taken(database, make_settings):
    settings = make_settings(lock_timeout_ms=50, lock_max_attempts=50)
    with application(database) as other:
        other.exec_driver_sql("SELECT * FROM segments LIMIT 1")
        timer = threading.Timer(0.4, other.rollback)
        timer.start()
        in_short_transaction(database, settings, "test", add_column)
        timer.join()
    assert "n" in columns_of(database)


def test_the_application_waits_no_longer_than_the_lock_timeout(database, make_settings):
    settings = make_settings(lock_timeout_ms=100, lock_max_attempts=5)
    longest, done = [0.0], threading.Event()

    def read_all_the_while():
        with application(database) as reader:
            while not done.is_set():
                started = time.perf_counter()
                reader.exec_driver_sql("SELECT id FROM segments LIMIT 1")
                reader.rollback()
                longest[0] = max(longest[0], time.perf_counter() - started)

    with application(database) as other:
        other.exec_driver_sql("SELECT * FROM segments LIMIT 1")
        thread = threading.Thread(target=read_all_the_while)
        thread.start()
        with pytest.raises(LockNotAcquired):
            in_short_transaction(database, settings, "test", add_column)
        done.set()
        thread.join()
    assert 0 < longest[0] < 1.0


def test_another_error_is_not_tried_again(database, settings):
    attempts = []

    def fail(connection):
        attempts.append(1)
        connection.exec_driver_sql("SELECT 1 / 0")

    with pytest.raises(DBAPIError, match="division by zero"):
        in_short_transaction(database, settings, "test", fail)
    assert len(attempts) == 1


def test_no_statement_under_a_lock_runs_for_long(database, settings):
    def ask(connection):
        return connection.execute(text("SHOW statement_timeout")).scalar_one()

    assert in_short_transaction(database, settings, "test", ask) == "10200ms"
    assert scalar(database, "SHOW statement_timeout") == "0"


def test_a_statement_outside_transactions_waits_as_briefly(database, settings):
    vacuum = text("VACUUM FULL segments")
    with application(database) as other:
        other.exec_driver_sql("SELECT * FROM segments LIMIT 1")
        with pytest.raises(LockNotAcquired):
            with_short_lock_wait(database, settings, "rewrite", vacuum)
    before = scalar(database, "SELECT pg_relation_filenode('segments')")
    with_short_lock_wait(database, settings, "rewrite", vacuum)
    assert scalar(database, "SELECT pg_relation_filenode('segments')") != before
    assert execute(database, "SHOW lock_timeout") == [("0",)]


@pytest.fixture
def autovacuum(database):
    """Autovacuum, at work on the table and as slow as it is on a large one; holds while it is."""
    is_at_work = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'autovacuum: VACUUM %.segments%')"
    slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 0"
    execute(database, f"ALTER TABLE segments SET ({slow}, autovacuum_vacuum_scale_factor = 0)")
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
        "SELECT (SELECT min(source_id) FROM segments), 'much', n, n + 1, repeat('x', 1000) FROM generate_series(1, 2000) n",
    )
    execute(database, "DELETE FROM segments WHERE video_id = 'much'")
    with database.autocommit() as connection:
        connection.execute(text("ALTER SYSTEM SET autovacuum_naptime = 1"))
        connection.execute(text("SELECT pg_reload_conf()"))
    try:
        wait_until(lambda: scalar(database, is_at_work), 60)
        yield lambda: scalar(database, is_at_work)
    finally:
        with database.autocommit() as connection:
            connection.execute(text("ALTER SYSTEM RESET autovacuum_naptime"))
            connection.execute(text("SELECT pg_reload_conf()"))


def test_autovacuum_gives_way_to_a_lock_that_waits_for_less_than_deadlock_timeout(database, settings, autovacuum):
    assert settings.lock_timeout_ms * settings.lock_max_attempts < 1_000
    assert autovacuum()
    in_short_transaction(
        database, settings, "test", lambda connection: lock_table(connection, SEGMENTS, "ACCESS EXCLUSIVE")
    )


def test_while_maintenance_is_waited_for_readers_and_writers_go_on(database, settings):
    refused = threading.Event()

    def lock():
        with pytest.raises(LockNotAcquired, match="SHARE UPDATE EXCLUSIVE"):
            in_short_transaction(
                database, settings, "test", lambda connection: lock_table(connection, SEGMENTS, "ACCESS EXCLUSIVE")
            )
        refused.set()

    with application(database) as vacuum, application(database) as writer:
        vacuum.exec_driver_sql("LOCK TABLE segments IN SHARE UPDATE EXCLUSIVE MODE")
        thread = threading.Thread(target=lock)
        thread.start()
        longest = 0.0
        while thread.is_alive():
            started = time.perf_counter()
            writer.exec_driver_sql("UPDATE segments SET text = text WHERE id = 1")
            writer.commit()
            longest = max(longest, time.perf_counter() - started)
        thread.join()
    assert refused.is_set()
    assert longest < 1.0  # a wait of theirs would last for a second and a half
