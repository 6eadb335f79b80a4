"""A row that cannot be embedded is put aside with its error, unless it has changed meanwhile."""

from __future__ import annotations

import pytest

from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.quarantine import forget_changed, list_quarantined, quarantine_row, release_all
from bge_pipeline_tests.support import application, execute, scalar

pytestmark = pytest.mark.pgvector


@pytest.fixture
def batch(database, column):
    execute(database, "INSERT INTO notes VALUES (1, 'a'), (2, 'b')")
    with database.autocommit() as connection:
        (batch,) = read_pending(connection, column, "v", 10)
    return batch


def pending(database, target):
    with database.autocommit() as connection:
        return [row_id for found in read_pending(connection, target, "v", 10) for row_id in found.ids]


def put_aside(database, target, batch, position, error="it is bad"):
    with database.transaction() as connection:
        return quarantine_row(connection, target, batch, position, error)


def test_a_row_is_kept_with_its_error_and_no_longer_pending(database, column, batch):
    assert put_aside(database, column, batch, 1)
    with database.autocommit() as connection:
        (row,) = list_quarantined(connection, column)
        assert (row.row_id, row.error) == ("2", "it is bad")
        assert [b.ids for b in read_pending(connection, column, "v", 10)] == [[1]]


def test_a_row_put_aside_again_keeps_the_latest_error(database, column, batch):
    put_aside(database, column, batch, 0)
    assert put_aside(database, column, batch, 0, "worse")
    assert execute(database, "SELECT row_id, error FROM notes_v_quarantine") == [(1, "worse")]


def test_a_row_changed_since_it_was_read_is_not_put_aside(database, column, batch):
    execute(database, "UPDATE notes SET text = 'better' WHERE id = 1")
    assert not put_aside(database, column, batch, 0)
    assert scalar(database, "SELECT count(*) FROM notes_v_quarantine") == 0


def test_a_row_that_somebody_is_changing_is_pending_again_when_they_commit(database, column, batch):
    with application(database) as other:
        other.exec_driver_sql("UPDATE notes SET text = 'better' WHERE id = 1")
        assert put_aside(database, column, batch, 0), "nobody waits for anybody"
        assert pending(database, column) == [2]
        other.commit()
    assert pending(database, column) == [1, 2]


def test_an_id_deleted_and_inserted_again_with_another_text_is_pending(database, column, batch):
    put_aside(database, column, batch, 0)
    execute(database, "DELETE FROM notes WHERE id = 1")
    assert pending(database, column) == [2]
    execute(database, "INSERT INTO notes VALUES (1, 'a')")
    assert pending(database, column) == [2], "the text that cannot be embedded is back"
    execute(database, "DELETE FROM notes WHERE id = 1")
    execute(database, "INSERT INTO notes VALUES (1, 'a good text')")
    assert pending(database, column) == [1, 2]
    with database.autocommit() as connection:
        assert list_quarantined(connection, column) == []


def test_what_was_kept_of_rows_that_have_changed_is_forgotten(database, column, batch):
    put_aside(database, column, batch, 0)
    put_aside(database, column, batch, 1)
    execute(database, "UPDATE notes SET text = 'better' WHERE id = 1")
    with database.transaction() as connection:
        assert forget_changed(connection, column) == 1
    assert execute(database, "SELECT row_id FROM notes_v_quarantine") == [(2,)]


def test_a_row_touched_in_another_column_is_put_aside_all_the_same(database, column, batch):
    execute(database, "ALTER TABLE notes ADD COLUMN seen int")
    execute(database, "UPDATE notes SET seen = 1")
    assert put_aside(database, column, batch, 0)


def test_without_a_usable_quarantine_no_row_counts_as_put_aside(database, column, batch):
    put_aside(database, column, batch, 0)
    execute(database, "ALTER TABLE notes_v_quarantine DROP COLUMN text_digest")
    assert pending(database, column) == [1, 2]
    execute(database, "DROP TABLE notes_v_quarantine")
    assert pending(database, column) == [1, 2]
    with database.transaction() as connection:
        assert list_quarantined(connection, column) == []
        assert release_all(connection, column) == 0


def test_an_endless_error_is_cut(database, column, batch):
    put_aside(database, column, batch, 0, "x" * 10_000)
    assert scalar(database, "SELECT length(error) FROM notes_v_quarantine") == 2_000


def test_an_error_that_no_text_of_the_database_can_hold_is_kept_without_it(database, column, batch):
    assert put_aside(database, column, batch, 0, "an endpoint said \ud83d and \0")
    assert scalar(database, "SELECT error FROM notes_v_quarantine") == "an endpoint said ? and ?"


def test_all_rows_can_be_released(database, column, batch):
    put_aside(database, column, batch, 0)
    put_aside(database, column, batch, 1)
    with database.transaction() as connection:
        assert release_all(connection, column) == 2
    with database.autocommit() as connection:
        assert [b.ids for b in read_pending(connection, column, "v", 10)] == [[1, 2]]
