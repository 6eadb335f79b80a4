"""Vectors are written to rows that are still as they were read, and to no others."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.ids import INTEGERS, UUIDS
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.writer import CommitRules, Destination, VectorWriter
from bge_pipeline_tests.support import SEGMENTS, application, execute, scalar

pytestmark = pytest.mark.pgvector

OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def notes(database, column):
    """Five pending rows."""
    execute(database, "INSERT INTO notes SELECT n, 'text ' || n FROM generate_series(1, 5) n")
    return column


@pytest.fixture
def writer(database, notes):
    with VectorWriter(database, Destination(notes, "v", 3, INTEGERS, 2), CommitRules(1_000, 1_000)) as writer:
        yield writer


def read(database, target):
    with database.autocommit() as connection:
        (batch,) = read_pending(connection, target, "v", 100)
    return batch, np.array([[i, -i] for i in range(len(batch))], np.float32)


def vectors(database):
    return [row[0] for row in execute(database, "SELECT v::text FROM notes ORDER BY id")]


def test_each_row_gets_its_own_vector(database, notes, writer):
    assert writer.write(*read(database, notes)).rows == 5
    assert vectors(database) == ["[0,0]", "[1,-1]", "[2,-2]", "[3,-3]", "[4,-4]"]


def test_batches_follow_each_other_on_one_connection(database, notes, writer):
    writer.write(*read(database, notes))
    execute(database, "UPDATE notes SET v = NULL WHERE id > 3")
    assert writer.write(*read(database, notes)).rows == 2
    assert scalar(database, "SELECT count(*) FROM notes WHERE v IS NULL") == 0


def test_a_row_edited_since_it_was_read_stays_pending(database, notes, writer):
    batch, values = read(database, notes)
    execute(database, "UPDATE notes SET text = 'changed' WHERE id = 2")
    assert writer.write(batch, values).rows == 4
    assert vectors(database)[1] is None


def test_a_row_that_changed_but_for_its_text_is_written(database, notes, writer):
    execute(database, "UPDATE notes SET text = 'naïve ключ' WHERE id = 2")
    batch, values = read(database, notes)
    execute(database, "ALTER TABLE notes ADD COLUMN seen int")
    execute(database, "UPDATE notes SET seen = id WHERE id > 1")
    assert writer.write(batch, values).rows == 5


def test_a_row_filled_since_it_was_read_keeps_what_it_has(database, notes, writer):
    batch, values = read(database, notes)
    execute(database, "UPDATE notes SET v = '[7,7]' WHERE id = 2")
    assert writer.write(batch, values).rows == 4
    assert vectors(database)[1] == "[7,7]"


def test_a_row_deleted_since_it_was_read_does_not_come_back(database, notes, writer):
    batch, values = read(database, notes)
    execute(database, "DELETE FROM notes WHERE id = 2")
    assert writer.write(batch, values).rows == 4
    assert scalar(database, "SELECT count(*) FROM notes") == 4


def test_a_row_that_the_application_has_locked_is_skipped_not_waited_for(database, notes, writer):
    batch, values = read(database, notes)
    with application(database) as other:
        other.exec_driver_sql("SELECT * FROM notes WHERE id = 3 FOR UPDATE")
        started = time.perf_counter()
        assert writer.write(batch, values).rows == 4
        assert time.perf_counter() - started < 0.3
    assert vectors(database)[2] is None


def test_an_update_that_is_not_committed_is_skipped_and_survives(database, notes, writer):
    batch, values = read(database, notes)
    with application(database) as other:
        other.exec_driver_sql("UPDATE notes SET text = 'changed' WHERE id = 3")
        assert writer.write(batch, values).rows == 4
        other.commit()
    assert execute(database, "SELECT text, v FROM notes WHERE id = 3") == [("changed", None)]


def test_a_row_locked_against_deletion_only_is_written(database, notes, writer):
    batch, values = read(database, notes)
    with application(database) as other:
        other.exec_driver_sql("SELECT * FROM notes WHERE id = 3 FOR KEY SHARE")
        assert writer.write(batch, values).rows == 5


def test_a_trigger_that_waits_for_the_application_gives_way_before_a_deadlock(database, notes, writer):
    execute(database, "CREATE TABLE counters (n int); INSERT INTO counters VALUES (0)")
    execute(
        database,
        "CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN UPDATE counters SET n = n + 1; RETURN NEW; END $$",
    )
    execute(database, "CREATE TRIGGER counts BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION count_it()")
    batch, values = read(database, notes)
    with application(database) as other:
        other.exec_driver_sql("UPDATE counters SET n = 100")
        assert writer.write(batch, values).rows == 0
        other.exec_driver_sql("UPDATE notes SET text = 'mine' WHERE id = 1")
        other.commit()
    assert writer.write(*read(database, notes)).rows == 5
    assert scalar(database, "SELECT n FROM counters") == 106


@pytest.mark.parametrize("when", ["before", "during the copy"])
def test_a_connection_that_was_ended_is_a_database_error_and_the_next_attempt_opens_another(
    database, notes, writer, when
):
    batch, values = read(database, notes)
    writer.write(batch.only([0]), values[:1])
    if when == "before":
        execute(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
    else:
        writer._connection.connection.dbapi_connection.close()
    with pytest.raises(DBAPIError):
        writer.write(batch, values)
    assert writer.write(batch, values).rows == 4
    assert scalar(database, "SELECT count(*) FROM notes WHERE v IS NULL") == 0


def test_a_vector_of_other_dimensions_is_refused_by_the_database(database, notes, writer):
    batch, _ = read(database, notes)
    with pytest.raises(DBAPIError, match="expected 2 dimensions, not 3"):
        writer.write(batch, np.ones((5, 3), np.float32))
    assert scalar(database, "SELECT count(v) FROM notes") == 0


def test_nothing_of_the_writer_is_left_when_it_is_closed(database, notes):
    with VectorWriter(database, Destination(notes, "v", 3, INTEGERS, 2), CommitRules(1_000, 1_000)) as writer:
        writer.write(*read(database, notes))
    assert scalar(database, f"SELECT count(*) FROM pg_stat_activity WHERE {OTHERS} AND state <> 'idle'") == 0
    assert scalar(database, "SHOW enable_seqscan") == "on"


def test_uuids_are_matched_as_uuids(database):
    execute(database, "CREATE TABLE notes (id uuid PRIMARY KEY, text text, v vector(2))")
    execute(database, "INSERT INTO notes SELECT gen_random_uuid(), 'text' FROM generate_series(1, 5)")
    target = replace(SEGMENTS, table="notes", embedding_column="v")
    with VectorWriter(database, Destination(target, "v", 3, UUIDS, 2), CommitRules(1_000, 1_000)) as writer:
        batch, values = read(database, target)
        assert writer.write(batch, values).rows == 5
    assert dict(execute(database, "SELECT id::text, v::text FROM notes")) == {
        row: f"[{i},{-i}]" if i else "[0,0]" for i, row in enumerate(batch.ids)
    }


def test_vectors_too_long_for_a_page_are_staged_too(database):
    execute(database, "CREATE TABLE notes (id int PRIMARY KEY, text text, v vector(3000))")
    execute(database, "INSERT INTO notes VALUES (1, 'a')")
    target = replace(SEGMENTS, table="notes", embedding_column="v")
    with (
        database.autocommit() as connection,
        VectorWriter(database, Destination(target, "v", 3, INTEGERS, 3000), CommitRules(1_000, 1_000)) as writer,
    ):
        (batch,) = read_pending(connection, target, "v", 10)
        assert writer.write(batch, np.ones((1, 3000), np.float32)).rows == 1
    assert scalar(database, "SELECT vector_dims(v) FROM notes") == 3000
