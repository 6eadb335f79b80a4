"""A strong lock is waited for briefly and again; the application never queues behind a long wait."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.locks import in_short_transaction, with_short_lock_wait
from bge_pipeline.errors import LockNotAcquired
from bge_pipeline_tests.support import application, columns_of, execute, scalar

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
