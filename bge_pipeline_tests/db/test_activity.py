"""What the server tells of a table is told of a partitioned one too, whose partitions do all the work."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from bge_pipeline.database.activity import is_being_indexed, read_activity
from bge_pipeline_tests.support import SEGMENTS, execute, wait_until

pytestmark = pytest.mark.pgvector

NOTES = replace(SEGMENTS, table="notes")


@pytest.fixture
def notes(database):
    """The database, with a partitioned table of two levels: its rows are in `notes_low`."""
    execute(
        database,
        "CREATE TABLE notes (id bigint, text text) PARTITION BY RANGE (id);"
        "CREATE TABLE notes_all PARTITION OF notes FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);"
        "CREATE TABLE notes_low PARTITION OF notes_all FOR VALUES FROM (0) TO (500);"
        "INSERT INTO notes SELECT n, 'a text' FROM generate_series(1, 100) n",
    )
    return database


def activity(database):
    with database.autocommit() as connection:
        return read_activity(connection, NOTES)


def test_updates_of_its_partitions_are_counted(notes):
    execute(notes, "UPDATE notes SET text = 'another'")
    notes.close()  # a session tells what it counted when it ends
    wait_until(lambda: activity(notes).updates == 100)


def test_who_waits_for_a_partition_is_seen(notes):
    with notes.transaction() as connection:
        connection.exec_driver_sql("LOCK TABLE notes_low IN SHARE MODE")
        writer = threading.Thread(target=execute, args=(notes, "UPDATE notes_low SET text = 'late' WHERE id = 1"))
        writer.start()
        wait_until(lambda: activity(notes).waiting_sessions == 1)
    writer.join()
    assert activity(notes).waiting_sessions == 0


def test_an_index_that_is_built_on_a_partition_is_seen_and_a_lock_on_the_table_keeps_nobody_from_looking(notes):
    execute(
        notes,
        "CREATE FUNCTION slowly(n bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT n FROM pg_sleep(0.02)'",
    )
    build = threading.Thread(
        target=execute, args=(notes, "SET statement_timeout = 0; CREATE INDEX ON notes_low (slowly(id))")
    )
    build.start()

    def is_indexed():
        with notes.autocommit() as connection:
            connection.exec_driver_sql("SET statement_timeout = '5s'")
            return is_being_indexed(connection, NOTES)

    wait_until(is_indexed)
    with notes.transaction() as connection:
        connection.exec_driver_sql("LOCK TABLE ONLY notes IN ACCESS EXCLUSIVE MODE")
        assert is_indexed()
    build.join()
    assert not is_indexed()
