"""Pending rows are read in pages of their own queries, each row with the version it had."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from bge_pipeline.database.reader import PendingBatch, read_pending, sample_texts
from bge_pipeline_tests.support import SEGMENTS, application, execute, put_in_quarantine, scalar

pytestmark = pytest.mark.pgvector


def pages(database, target, rows, **keywords):
    with database.autocommit() as connection:
        return list(read_pending(connection, target, target.embedding_column, rows, **keywords))


def test_every_pending_row_is_read_once_in_id_order(database, column):
    execute(database, "INSERT INTO notes SELECT n * 10, 'text ' || n FROM generate_series(9, 1, -1) n")
    batches = pages(database, column, 4)
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert [i for batch in batches for i in batch.ids] == [10 * n for n in range(1, 10)]
    assert batches[0].texts[0] == "text 1"


@pytest.mark.parametrize("blank", [None, "", " ", "\t\n\r  "])
def test_a_row_without_text_is_not_pending(database, column, blank):
    execute(database, "INSERT INTO notes VALUES (1, :blank), (2, '.')", blank=blank)
    assert [batch.ids for batch in pages(database, column, 10)] == [[2]]


def test_rows_with_a_vector_or_in_quarantine_are_not_pending(database, column):
    execute(database, "INSERT INTO notes VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    execute(database, "UPDATE notes SET v = '[1,0]' WHERE id = 1")
    put_in_quarantine(database, 2, table="notes", quarantine="notes_v_quarantine")
    assert [batch.ids for batch in pages(database, column, 10)] == [[3]]


def test_the_version_is_the_row_s_xmin(database, column):
    execute(database, "INSERT INTO notes VALUES (1, 'a')")
    execute(database, "UPDATE notes SET text = 'b'")
    (batch,) = pages(database, column, 10)
    assert batch.versions[0] == scalar(database, "SELECT xmin::text::bigint FROM notes")


def test_reading_can_begin_behind_an_id(database, column):
    execute(database, "INSERT INTO notes SELECT n, 'text' FROM generate_series(1, 5) n")
    assert [batch.ids for batch in pages(database, column, 2, after=3)] == [[4, 5]]


def test_a_row_that_arrives_behind_the_reader_is_read_and_one_that_arrives_before_it_waits(database, column):
    execute(database, "INSERT INTO notes SELECT n * 10, 'text' FROM generate_series(1, 3) n")
    with database.autocommit() as connection:
        batches = read_pending(connection, column, "v", 1)
        assert next(batches).ids == [10]
        execute(database, "INSERT INTO notes VALUES (5, 'late'), (15, 'late')")
        assert [batch.ids for batch in batches] == [[15], [20], [30]]
    assert pages(database, column, 1)[0].ids == [5]


def test_no_transaction_stays_open_between_pages(database, column):
    execute(database, "INSERT INTO notes SELECT n, 'text' FROM generate_series(1, 3) n")
    with database.autocommit() as connection:
        batches = read_pending(connection, column, "v", 1)
        next(batches)
        pid = connection.connection.dbapi_connection.info.backend_pid
        state = execute(database, "SELECT state, backend_xmin FROM pg_stat_activity WHERE pid = :pid", pid=pid)
    assert state == [("idle", None)]


def test_an_uncommitted_change_is_not_seen(database, column):
    execute(database, "INSERT INTO notes VALUES (1, 'before')")
    with application(database) as other:
        other.exec_driver_sql("UPDATE notes SET text = 'during'")
        assert [batch.texts for batch in pages(database, column, 5)] == [("before",)]


def test_uuids_are_read_as_strings(database):
    execute(database, "CREATE TABLE notes (id uuid PRIMARY KEY, text text, v vector(2))")
    execute(database, "INSERT INTO notes SELECT gen_random_uuid(), 'text' FROM generate_series(1, 5)")
    batches = pages(database, replace(SEGMENTS, table="notes", embedding_column="v"), 2)
    found = [i for batch in batches for i in batch.ids]
    assert found == sorted(found)
    assert len(set(found)) == 5
    assert all(isinstance(i, str) for i in found)


def test_memory_does_not_grow_with_the_table(database, column):
    execute(database, "INSERT INTO notes SELECT n, repeat('word ', 40) FROM generate_series(1, 20000) n")

    def peak(upper):
        with database.autocommit() as connection:
            tracemalloc.start()
            for batch in read_pending(connection, column, "v", 100):
                if batch.ids[-1] >= upper:
                    break
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

    peak(200)
    assert peak(20_000) < 1.5 * peak(1_000)


def test_a_batch_can_be_cut_and_put_together():
    batch = PendingBatch([1, 2, 3], [10, 20, 30], ["a", "b", "c"])
    assert batch.only([2, 0]) == PendingBatch([3, 1], [30, 10], ["c", "a"])
    first, second = batch.halves()
    assert (len(first), len(second)) == (1, 2)
    assert first.joined(second) == batch


def test_a_sample_is_repeatable_and_has_no_blank_texts(database):
    execute(database, "UPDATE segments SET text = ' ' WHERE id % 10 = 0")
    with database.autocommit() as connection:
        first, second = (sample_texts(connection, SEGMENTS, 20) for _ in range(2))
    assert first == second
    assert 0 < len(first) <= 20
    assert all(text.strip() for text in first)
