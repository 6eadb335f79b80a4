"""A row that cannot be embedded is put aside with its error, unless it has changed meanwhile."""

from __future__ import annotations

import pytest

from bge_pipeline.database.quarantine import list_quarantined, quarantine_row, release_all
from bge_pipeline.database.reader import read_pending
from bge_pipeline_tests.support import application, execute, scalar

pytestmark = pytest.mark.pgvector


@pytest.fixture
def batch(database, column):
    execute(database, "INSERT INTO notes VALUES (1, 'a'), (2, 'b')")
    with database.autocommit() as connection:
        (batch,) = read_pending(connection, column, "v", 10)
    return batch


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


def test_a_row_that_somebody_is_changing_is_not_put_aside(database, column, batch):
    with application(database) as other:
        other.exec_driver_sql("UPDATE notes SET text = 'better' WHERE id = 1")
        assert not put_aside(database, column, batch, 0)
        other.commit()
    assert scalar(database, "SELECT count(*) FROM notes_v_quarantine") == 0


def test_an_endless_error_is_cut(database, column, batch):
    put_aside(database, column, batch, 0, "x" * 10_000)
    assert scalar(database, "SELECT length(error) FROM notes_v_quarantine") == 2_000


def test_all_rows_can_be_released(database, column, batch):
    put_aside(database, column, batch, 0)
    put_aside(database, column, batch, 1)
    with database.transaction() as connection:
        assert release_all(connection, column) == 2
    with database.autocommit() as connection:
        assert [b.ids for b in read_pending(connection, column, "v", 10)] == [[1, 2]]
