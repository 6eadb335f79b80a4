"""Whoever is in the way is named: in errors, in the log while something waits, and with what a role may see of others."""

from __future__ import annotations

import logging
import threading
import uuid
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_build import build_concurrently, rebuild_concurrently
from bge_pipeline.database.indexes import drop_index
from bge_pipeline.database.lock_holders import find_blockers, find_holders, naming_blockers, shown_holders
from bge_pipeline.database.locks import in_short_transaction, with_short_lock_wait
from bge_pipeline.database.operator import operating
from bge_pipeline.errors import LockNotAcquired, OperatorBusy
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.support import ENCODER, SEGMENTS, application, execute, wait_until

pytestmark = pytest.mark.pgvector

INDEX = text("CREATE INDEX CONCURRENTLY ours ON segments (start_sec)")


def add_column(connection):
    connection.exec_driver_sql("ALTER TABLE segments ADD COLUMN n int")


@pytest.fixture
def holder(database):
    """The application in a transaction that has written a row of the table; its process is `holder.pid`."""
    with application(database) as other:
        other.pid = other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'secret' WHERE id = 1")
        yield other


def named(holder, words):
    return all(
        part in words
        for part in (
            f"pid {holder.pid}",
            "application",
            "role postgres",
            "since 20",
            "idle in transaction",
            "last statement UPDATE segments SET speaker_label = ? WHERE id = ?",
        )
    )


class TestStrongLocks:
    def test_the_error_names_who_holds_the_table(self, database, settings, holder):
        with pytest.raises(LockNotAcquired) as refused:
            in_short_transaction(database, settings, "add it", add_column)
        assert named(holder, refused.value.message)
        assert "secret" not in str(refused.value)

    def test_the_log_names_it_while_attempts_go_on(self, database, make_settings, holder, caplog):
        caplog.set_level(logging.INFO, "bge_pipeline")
        timer = threading.Timer(1.5, holder.rollback)
        timer.start()
        settings = make_settings(lock_max_attempts=50, lock_timeout_ms=1_000)
        in_short_transaction(database, settings, "add it", add_column)
        timer.join()
        assert any("the table is busy, attempt 1 of 50" in line and named(holder, line) for line in caplog.messages)

    def test_a_statement_outside_transactions_names_it_too(self, database, settings, holder):
        with pytest.raises(LockNotAcquired) as refused:
            with_short_lock_wait(database, settings, "rewrite", text("VACUUM FULL segments"))
        assert named(holder, refused.value.message)

    def test_a_change_of_the_operator_names_it_too(self, database, settings, holder):
        with operating(database, settings, "swap") as operator, pytest.raises(LockNotAcquired) as refused:
            operator.change(settings, "swap: exchange", add_column)
        assert named(holder, refused.value.message)


class TestIndexes:
    @pytest.mark.parametrize("act", ["build", "rebuild", "drop"])
    def test_a_wait_for_transactions_names_them_in_the_log(self, database, holder, caplog, act):
        caplog.set_level(logging.INFO, "bge_pipeline")
        holder.rollback()
        if act != "build":
            build_concurrently(database, SEGMENTS, "ours", INDEX, column="start_sec")
        holder.exec_driver_sql("UPDATE segments SET speaker_label = 'secret' WHERE id = 1")

        def drop():
            with database.autocommit() as connection, naming_blockers(database, connection, "dropping index ours"):
                drop_index(connection, "public", "ours")

        work = {
            "build": lambda: build_concurrently(database, SEGMENTS, "ours", INDEX, column="start_sec"),
            "rebuild": lambda: rebuild_concurrently(database, SEGMENTS, "ours", INDEX, column="start_sec"),
            "drop": drop,
        }[act]

        def waits():  # for the transaction, and not for a session of the build before, which may take a moment to end
            told = [line for line in caplog.messages if "waiting for pid" in line]
            return [line for line in told if not line.startswith("another process is building")]

        thread = threading.Thread(target=work)
        thread.start()
        try:
            wait_until(waits)
        finally:
            holder.rollback()
            thread.join()
        (line,) = waits()
        assert "index ours" in line
        assert named(holder, line)

    def test_the_progress_of_a_build_names_them(self, database, holder):
        looks = []

        def progress(look):
            looks.append(look)
            holder.rollback()

        build_concurrently(database, SEGMENTS, "ours", INDEX, column="start_sec", on_progress=progress)
        assert named(holder, looks[0].waits_for)

    def test_who_keeps_an_unfinished_index_from_being_removed_is_named(self, database, holder, caplog):
        def interrupt(_look):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_concurrently(database, SEGMENTS, "ours", INDEX, column="start_sec", on_progress=interrupt)
        (warning,) = [line for line in caplog.messages if "could not be removed" in line]
        assert named(holder, warning)

    def test_a_build_of_another_process_is_named(self, database, caplog):
        caplog.set_level(logging.INFO, "bge_pipeline")
        lock = f"hashtextextended('{SEGMENTS}.ours', 0)"
        with application(database) as other:
            pid = other.exec_driver_sql(f"SELECT pg_backend_pid() FROM pg_advisory_lock({lock})").scalar_one()
            thread = threading.Thread(
                target=build_concurrently, args=(database, SEGMENTS, "ours", INDEX), kwargs={"column": "start_sec"}
            )
            thread.start()
            wait_until(lambda: any(f"waiting for pid {pid}, application" in line for line in caplog.messages))
            other.exec_driver_sql(f"SELECT pg_advisory_unlock({lock})")
            thread.join()


def test_another_operator_is_named_with_its_role_and_since_when(database, settings):
    with (
        operating(database, settings, "swap"),
        Database(database.url) as mine,
        pytest.raises(OperatorBusy) as refused,
        operating(mine, settings, "retire"),
    ):
        pass
    assert "bge-pipeline swap (process" in refused.value.message
    assert "role postgres" in refused.value.message
    assert "since 20" in refused.value.message


def test_rows_that_stay_locked_are_told_with_who_locks_them(database, make_settings, holder, caplog):
    holder.rollback()
    settings = make_settings(backfill_max_attempts=1)
    expand(Migration(database, settings), ENCODER.space)
    holder.exec_driver_sql("UPDATE segments SET speaker_label = 'secret' WHERE id = 1")
    assert backfill(Migration(database, settings), ENCODER).pending_after == 1
    (warning,) = [line for line in caplog.messages if "still pending" in line]
    assert named(holder, warning)


def test_what_a_role_may_not_see_is_said_with_what_grants_it(database, holder):
    role = f"stranger_{uuid.uuid4().hex[:8]}"
    execute(database, f"CREATE ROLE {role} LOGIN PASSWORD 'stranger'")
    try:
        stranger = Database(database.url.set(username=role, password="stranger"))
        with stranger, stranger.autocommit() as connection:
            (found,) = find_holders(connection, "public.segments")
    finally:
        execute(database, f"DROP ROLE {role}")
    assert found.is_hidden
    assert (found.pid, found.application, found.role) == (holder.pid, "application", "postgres")
    assert "pg_read_all_stats" in str(found)
    assert "UPDATE" not in str(found)


def test_who_waits_for_nothing_is_blocked_by_nobody(database):
    with database.autocommit() as connection:
        assert find_blockers(connection, connection.execute(text("SELECT pg_backend_pid()")).scalar_one()) == ()


def test_many_holders_are_counted(database):
    with ExitStack() as stack:
        for number in range(1, 5):
            other = stack.enter_context(application(database))
            other.exec_driver_sql(f"UPDATE segments SET speaker_label = 'x' WHERE id = {number}")
        with database.autocommit() as connection:
            found = find_holders(connection, "public.segments")
    assert len(found) == 4
    assert shown_holders(found).endswith("; and 1 more")


@pytest.fixture
def own_server():
    """A server that takes prepared transactions."""
    server = OwnServer.temporary()
    server.set(max_prepared_transactions="2")
    yield server
    server.remove()


def test_a_prepared_transaction_is_named_by_its_identifier(own_server):
    with Database(own_server.url) as database:
        execute(database, "CREATE TABLE t (n int)")
        with application(database) as other:
            other.exec_driver_sql("INSERT INTO t VALUES (1)")
            other.exec_driver_sql("PREPARE TRANSACTION 'forgotten'")
        with application(database) as waiting:
            pid = waiting.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            thread = threading.Thread(target=lambda: waiting.exec_driver_sql("LOCK TABLE t"))
            thread.start()

            def blockers():
                with database.autocommit() as connection:
                    return find_blockers(connection, pid)

            wait_until(lambda: bool(blockers()))
            (found,) = blockers()
            with database.autocommit() as connection:
                connection.exec_driver_sql("ROLLBACK PREPARED 'forgotten'")
            thread.join()
    assert str(found).startswith("prepared transaction 'forgotten', role postgres, since 20")
