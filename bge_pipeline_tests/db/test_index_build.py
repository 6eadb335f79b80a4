"""Indexes are built beside live traffic; whatever interrupts a build, no invalid index stays in the way."""

from __future__ import annotations

import _thread
import threading
import time

import pytest
from sqlalchemy import Connection, text

from bge_pipeline.database.activity import is_being_indexed
from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_build import build_concurrently, rebuild_concurrently
from bge_pipeline.database.indexes import index_is_valid
from bge_pipeline.errors import DatabaseUnavailable, IndexBuildFailed
from bge_pipeline_tests.support import SEGMENTS, application, execute, scalar, wait_until

pytestmark = pytest.mark.pgvector

STATEMENT = text("CREATE INDEX CONCURRENTLY ours ON segments (start_sec)")


OURS = "(SELECT oid FROM pg_database WHERE datname = current_database())"


def validity(database, name="ours"):
    with database.autocommit() as connection:
        return index_is_valid(connection, "public", name)


def leave_invalid(database, name="ours"):
    """What a build leaves that was killed."""
    execute(database, f"CREATE INDEX {name} ON segments (start_sec)")
    execute(database, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")


def is_building(database):
    return bool(execute(database, "SELECT FROM pg_stat_progress_create_index WHERE datname = current_database()"))


@pytest.fixture
def held_up(database):
    """A transaction of the application for whose end every concurrent build waits."""
    with application(database) as other:
        other.exec_driver_sql("INSERT INTO sources (video_id, title) VALUES ('x', 'x')")
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1")
        yield other


def test_an_index_is_built_once(database):
    first = build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    second = build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    assert (first.built, second.built) == (True, False)
    assert first.bytes == second.bytes > 0
    assert first.seconds > 0


def test_an_invalid_leftover_is_replaced(database):
    leave_invalid(database)
    assert validity(database) is False
    assert build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec").built
    assert validity(database) is True


def test_an_application_that_reads_and_writes_is_not_held_up_by_a_build(database, held_up):
    thread = threading.Thread(
        target=build_concurrently, args=(database, SEGMENTS, "ours", STATEMENT), kwargs={"column": "start_sec"}
    )
    thread.start()
    wait_until(lambda: is_building(database))
    with application(database) as other:
        other.exec_driver_sql("SET statement_timeout = '2s'")
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'y' WHERE id = 2")
        other.exec_driver_sql("SELECT count(*) FROM segments")
        other.commit()
    held_up.commit()
    thread.join()
    assert validity(database) is True


def test_progress_is_reported_while_the_build_waits(database, held_up):
    seen = []

    def progress(look):
        seen.append(look)
        held_up.rollback()

    build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec", on_progress=progress)
    assert "waiting for" in seen[0].phase


@pytest.mark.parametrize("application_goes_on", [False, True])
def test_ctrl_c_ends_the_build_on_the_server_at_once(database, held_up, application_goes_on):
    def interrupt(_look):
        if not application_goes_on:
            held_up.rollback()
        raise KeyboardInterrupt

    slow = slow_statement(database)
    before, started = threading.active_count(), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        build_concurrently(database, SEGMENTS, "ours", slow, column="start_sec", on_progress=interrupt)
    assert time.perf_counter() - started < 5
    assert threading.active_count() == before
    assert not is_building(database)
    assert validity(database) is (False if application_goes_on else None)
    held_up.rollback()
    assert build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec").built


def slow_statement(database):
    """A build of at least six seconds."""
    execute(
        database,
        "CREATE FUNCTION slowly(n float8) RETURNS float8 IMMUTABLE LANGUAGE sql AS 'SELECT n FROM pg_sleep(0.02)'",
    )
    return text("CREATE INDEX CONCURRENTLY ours ON segments (slowly(start_sec))")


def test_a_build_whose_connection_is_ended_is_an_unavailable_database_and_leaves_nothing(database):
    def terminate(_look):
        execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index WHERE datname = current_database()",
        )

    with pytest.raises(DatabaseUnavailable):
        build_concurrently(
            database, SEGMENTS, "ours", slow_statement(database), column="start_sec", on_progress=terminate
        )
    assert validity(database) is None


def test_a_valid_index_of_that_name_is_not_taken_for_the_leftover_of_a_build_that_was_cut_off(database):
    """As another makes it with the turn that came free, or the server for a session whose connection broke at the end."""

    def cut_off(_look):
        terminate_builder(database)
        execute(database, "DROP INDEX ours")
        execute(database, "CREATE INDEX ours ON segments (start_sec)")

    with pytest.raises(DatabaseUnavailable):
        build_concurrently(
            database, SEGMENTS, "ours", slow_statement(database), column="start_sec", on_progress=cut_off
        )
    assert validity(database) is True


def test_an_unfinished_index_is_left_to_who_has_the_turn(database, caplog):
    with application(database) as other:

        def cut_off(_look):
            terminate_builder(database)
            other.exec_driver_sql(f"SELECT pg_advisory_lock(hashtextextended('{SEGMENTS}.ours', 0))")

        with pytest.raises(DatabaseUnavailable):
            build_concurrently(
                database, SEGMENTS, "ours", slow_statement(database), column="start_sec", on_progress=cut_off
            )
    assert validity(database) is False
    assert "index ours is left to the session that builds it" in caplog.text


def terminate_builder(database):
    """End the session that builds, and wait until it has."""
    execute(
        database,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_progress_create_index WHERE datname = current_database()",
    )


@pytest.mark.parametrize(
    ("message", "hint", "next_step"),
    [
        ("out of memory", "", "lower INDEX_MAX_MEMORY_MB"),
        (
            "out of shared memory",
            'You might need to increase "max_locks_per_transaction".',
            "raise max_locks_per_transaction",
        ),
    ],
)
def test_what_a_server_without_memory_lacks_is_what_is_advised_and_it_is_not_asked_twice(
    database, message, hint, next_step
):
    execute(database, "CREATE SEQUENCE asked")
    execute(
        database,
        "CREATE FUNCTION refused(n float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM nextval('public.asked'); RAISE '{message}' USING ERRCODE = '53200', HINT = '{hint}'; END $$",
    )
    statement = text("CREATE INDEX CONCURRENTLY ours ON segments (refused(start_sec))")
    with pytest.raises(IndexBuildFailed, match=f"index ours: {message}") as failed:
        build_concurrently(database, SEGMENTS, "ours", statement, column="start_sec", memory_bytes=300 << 20)
    assert next_step in failed.value.next_step
    assert scalar(database, "SELECT last_value FROM asked") == 1
    assert validity(database) is None


def test_want_of_room_in_dev_shm_is_answered_by_a_build_of_one_process(database):
    execute(
        database,
        "CREATE FUNCTION refused(n float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
        "IF current_setting('max_parallel_maintenance_workers') <> '0' THEN "
        "RAISE 'could not resize shared memory segment \"/PostgreSQL.1\" to 9 bytes: No space left on device' "
        "USING ERRCODE = '53100'; END IF; RETURN n; END $$",
    )
    statement = text("CREATE INDEX CONCURRENTLY ours ON segments (refused(start_sec))")
    assert build_concurrently(database, SEGMENTS, "ours", statement, column="start_sec", workers=2).built


def test_too_little_memory_is_explained_with_the_memory_it_takes(database, database_url):
    execute(database, f"ALTER DATABASE {database.url.database} SET maintenance_work_mem = '1MB'")
    options = (
        "WITH (lists = 250)"  # fewer than rows: before 0.6 pgvector takes rows as centers where there are not more
    )
    statement = text(
        f"CREATE INDEX CONCURRENTLY ours ON segments USING ivfflat (embedding vector_cosine_ops) {options}"
    )
    with Database(database_url) as fresh, pytest.raises(IndexBuildFailed, match="memory required is") as refused:
        build_concurrently(fresh, SEGMENTS, "ours", statement, column="embedding")
    assert "INDEX_MAX_MEMORY_MB" in refused.value.next_step
    assert validity(database) is None


def test_the_memory_that_a_build_needs_is_given_to_its_session_alone(database):
    statement = text(
        "CREATE INDEX CONCURRENTLY ours ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 300)"
    )
    result = build_concurrently(database, SEGMENTS, "ours", statement, column="embedding", memory_bytes=300 << 20)
    assert result.maintenance_work_mem_mb == 300
    assert scalar(database, "SHOW maintenance_work_mem") == "64MB"
    assert scalar(database, "SHOW max_parallel_maintenance_workers") == "2"


@pytest.mark.parametrize(
    ("processors", "asked", "expected"), [(16, None, "2"), (4, None, "1"), (2, None, "0"), (2, 0, "0"), (2, 5, "5")]
)
def test_it_leaves_half_of_the_processors_of_this_machine_free_unless_somebody_asks(
    database, monkeypatch, processors, asked, expected
):
    monkeypatch.setattr("bge_pipeline.database.index_build.usable_processors", lambda: processors)
    execute(
        database,
        "CREATE FUNCTION counted(n float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
        f"IF current_setting('max_parallel_maintenance_workers') <> '{expected}' THEN RAISE 'other' ; END IF; RETURN n; END $$",
    )
    statement = text("CREATE INDEX CONCURRENTLY ours ON segments (counted(start_sec))")
    assert build_concurrently(database, SEGMENTS, "ours", statement, column="start_sec", workers=asked).built
    assert scalar(database, "SHOW max_parallel_maintenance_workers") == "2"


def test_two_processes_that_build_the_same_index_take_turns(database, held_up):
    results = []

    def build():
        results.append(build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec"))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: is_building(database))
    held_up.commit()
    for thread in threads:
        thread.join()
    assert sorted(result.built for result in results) == [False, True]
    assert validity(database) is True


def test_a_turn_is_given_back_and_not_left_to_the_end_of_the_session_which_comes_a_moment_later(database, monkeypatch):
    held = []
    end = Connection.invalidate

    def look_and_end(connection):
        held.append(
            scalar(database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = " + OURS)
        )
        end(connection)

    monkeypatch.setattr(Connection, "invalidate", look_and_end)
    build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    assert held == [0]


def test_an_index_made_anew_has_no_entries_of_rows_that_left_it(database):
    partial = text("CREATE INDEX CONCURRENTLY ours ON segments (id) WHERE embedding IS NULL")
    execute(database, "UPDATE segments SET embedding = NULL")
    build_concurrently(database, SEGMENTS, "ours", partial, column="embedding")
    before = scalar(database, "SELECT pg_relation_size('ours')")
    execute(database, f"UPDATE segments SET embedding = '{[0.1] * 1536}'")
    rebuild_concurrently(database, SEGMENTS, "ours", partial, column="embedding")
    assert scalar(database, "SELECT pg_relation_size('ours')") < before
    assert validity(database) is True


@pytest.mark.parametrize("act", ["make anew", "drop"])
def test_ctrl_c_ends_a_wait_of_an_index_that_is_made_anew_or_dropped_at_once(database, held_up, act):
    held_up.rollback()
    if act == "make anew":
        build_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    else:
        leave_invalid(database)
    held_up.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1")
    timer = threading.Timer(1, _thread.interrupt_main)
    before, started = threading.active_count(), time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        rebuild_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    assert time.perf_counter() - started < 5
    wait_until(lambda: threading.active_count() == before)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^(REINDEX|DROP)'"
    assert scalar(database, waiting + " AND state = 'active'") == 0


def test_what_prevents_that_an_index_is_made_anew_is_told_as_of_a_build(database):
    execute(database, "CREATE TABLE allowed AS SELECT true AS at_all")
    execute(
        database,
        "CREATE FUNCTION refusing(n float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
        "IF NOT (SELECT at_all FROM public.allowed) THEN RAISE 'no'; END IF; RETURN n; END $$",
    )
    statement = text("CREATE INDEX CONCURRENTLY ours ON segments (refusing(start_sec))")
    build_concurrently(database, SEGMENTS, "ours", statement, column="start_sec")
    execute(database, "UPDATE allowed SET at_all = false")
    with pytest.raises(IndexBuildFailed, match="index ours: no"):
        rebuild_concurrently(database, SEGMENTS, "ours", statement, column="start_sec")


def test_an_index_that_is_missing_or_invalid_is_built_when_it_should_be_made_anew(database):
    rebuild_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    assert validity(database) is True
    execute(database, "DROP INDEX ours")
    leave_invalid(database)
    rebuild_concurrently(database, SEGMENTS, "ours", STATEMENT, column="start_sec")
    assert validity(database) is True


def test_leftovers_of_an_interrupted_rebuild_are_removed_and_those_of_others_are_not(database):
    name = "n" * 60
    statement = text(f"CREATE INDEX CONCURRENTLY {name} ON segments (start_sec)")
    build_concurrently(database, SEGMENTS, name, statement, column="start_sec")
    leave_invalid(database, f"{name[:56]}_ccnew")
    leave_invalid(database, "somebody_else_ccnew")
    rebuild_concurrently(database, SEGMENTS, name, statement, column="start_sec")
    assert validity(database, f"{name[:56]}_ccnew") is None
    assert validity(database, "somebody_else_ccnew") is False


def test_a_build_in_another_database_is_none_of_this_one_although_its_tables_have_the_same_numbers(
    database, new_database_url
):
    def is_indexed(where):
        with where.autocommit() as connection:
            return is_being_indexed(connection, SEGMENTS)

    with Database(new_database_url()) as twin:
        oid = "SELECT 'segments'::regclass::oid"
        assert scalar(twin, oid) == scalar(database, oid)
        build = threading.Thread(
            target=build_concurrently,
            args=(twin, SEGMENTS, "ours", slow_statement(twin)),
            kwargs={"column": "start_sec"},
        )
        build.start()
        try:
            wait_until(lambda: is_indexed(twin))
            assert not is_indexed(database)
        finally:
            build.join()
