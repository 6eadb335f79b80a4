"""Pending rows are read by queries of their own, each row with the version it had."""

from __future__ import annotations

import tracemalloc
import uuid
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from bge_pipeline.database import pending_reader
from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.database.pending import pending_index_statement
from bge_pipeline.database.pending_reader import PendingBatch, PendingReader, read_pending
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.errors import TargetTableError
from bge_pipeline_tests.support import SEGMENTS, administer, application, execute, put_in_quarantine, scalar

pytestmark = pytest.mark.pgvector


@pytest.fixture(params=["in turns of the pages", "through the index"])
def way(request, database, column):
    """Both ways to read: before the index of pending rows is there, and after."""
    if request.param == "through the index":
        with database.autocommit() as connection:
            connection.execute(pending_index_statement(column, "v", "ix_pending"))


def pages(database, target, rows, **keywords):
    with database.autocommit() as connection:
        return list(read_pending(connection, target, target.embedding_column, rows, **keywords))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("id_range", [None, IdRange(20, 80, INTEGERS)], ids=["table", "range"])
def test_every_pending_row_is_read_once(database, column, id_range):
    execute(database, "INSERT INTO notes SELECT n * 10, 'text ' || n FROM generate_series(9, 1, -1) n")
    batches = pages(database, column, 4, id_range=id_range)
    found = {i: text for batch in batches for i, text in zip(batch.ids, batch.texts, strict=True)}
    wanted = range(1, 10) if id_range is None else range(2, 8)
    assert found == {10 * n: f"text {n}" for n in wanted}
    assert [len(batch) for batch in batches] == ([4, 4, 1] if id_range is None else [4, 2])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("id_range", [None, IdRange(1, 100, INTEGERS)], ids=["table", "range"])
def test_a_batch_has_no_more_bytes_than_it_may_and_a_row_at_least(database, column, id_range, monkeypatch):
    monkeypatch.setattr(pending_reader, "_MOST_BYTES", 100)
    execute(
        database,
        "INSERT INTO notes SELECT n, repeat('ü', CASE n WHEN 4 THEN 500 ELSE 20 END) FROM generate_series(1, 9) n",
    )
    batches = pages(database, column, 4, id_range=id_range)
    assert sorted(i for batch in batches for i in batch.ids) == list(range(1, 10))
    assert [batch.ids for batch in batches if len(batch) == 1 and len(batch.texts[0]) == 500] == [[4]]
    assert max(len(batch) for batch in batches) == 2
    assert len(batches) <= 6


def test_a_window_whose_reading_failed_is_read_again(database, column):
    execute(database, "INSERT INTO notes SELECT n, 'text' FROM generate_series(1, 3) n")
    pending = PendingReader(column, "v", 2)
    with database.autocommit() as connection, application(database) as other:
        connection.exec_driver_sql("SET lock_timeout = '50ms'")
        pending.read(connection)
        other.exec_driver_sql("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
        pending = PendingReader(column, "v", 2)
        with pytest.raises(OperationalError, match="lock timeout"):
            pending.read(connection)
        other.rollback()
        assert len(pending.read(connection)) == 2
        connection.invalidate()


def test_rows_come_in_turns_of_the_pages_the_largest_of_each_first(database, column):
    execute(database, "INSERT INTO notes SELECT n, repeat('x', 300 + n * 37 % 400) FROM generate_series(1, 300) n")
    (batch,) = pages(database, column, 1_000)
    turns: dict[int, list[int]] = {}
    for position, block in enumerate(batch.blocks):
        turns.setdefault(block, []).append(position)
    assert len(turns) > 10
    assert set(batch.blocks[: len(turns)]) == set(turns), "the first turn takes one row of every page"
    for positions in turns.values():
        sizes = [len(batch.texts[position]) for position in positions]
        assert sizes == sorted(sizes, reverse=True)


def test_a_table_of_many_windows_is_read_whole(database, column, monkeypatch):
    monkeypatch.setattr(pending_reader, "_WINDOW_ROWS", 64)
    monkeypatch.setattr(pending_reader, "_FEWEST_PAGES", 1)
    execute(database, "INSERT INTO notes SELECT n, repeat('x', 300) FROM generate_series(1, 1000) n")
    execute(database, "ANALYZE notes")
    for id_range, count in ((None, 1_000), (IdRange(101, 901, INTEGERS), 800)):
        found = [i for batch in pages(database, column, 50, id_range=id_range) for i in batch.ids]
        assert len(found) == len(set(found)) == count


def test_a_row_that_was_moved_after_its_place_was_read_is_left_to_the_next_pass(database, column):
    execute(database, "INSERT INTO notes SELECT n, 'text' FROM generate_series(1, 3) n")
    with database.autocommit() as connection:
        batches = read_pending(connection, column, "v", 1)
        first = next(batches).ids[0]
        moved = 3 if first != 3 else 2
        execute(database, "UPDATE notes SET text = 'moved' WHERE id = :id", id=moved)
        rest = [i for batch in batches for i in batch.ids]
    assert sorted([first, *rest, moved]) == [1, 2, 3]
    assert moved in [i for batch in pages(database, column, 5) for i in batch.ids]


def test_after_an_error_another_connection_goes_on_where_the_last_one_stood(database, column):
    execute(database, "INSERT INTO notes SELECT n, 'text' FROM generate_series(1, 9) n")
    pending = PendingReader(column, "v", 2)
    found = []
    while True:
        with database.autocommit() as connection:  # one connection a batch
            batch = pending.read(connection)
        if batch is None:
            break
        found += batch.ids
    assert sorted(found) == list(range(1, 10))


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


def test_a_row_that_arrives_behind_the_reader_is_read_and_one_that_arrives_before_it_waits(database, column):
    with database.autocommit() as connection:
        connection.execute(pending_index_statement(column, "v", "ix_pending"))
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
        assert [batch.texts for batch in pages(database, column, 5)] == [["before"]]


def test_uuids_are_read_as_strings(database):
    execute(database, "CREATE TABLE notes (id uuid PRIMARY KEY, text text, v vector(2))")
    execute(database, "INSERT INTO notes SELECT gen_random_uuid(), 'text' FROM generate_series(1, 5)")
    batches = pages(database, replace(SEGMENTS, table="notes", embedding_column="v"), 2)
    found = [i for batch in batches for i in batch.ids]
    assert len(found) == len(set(found)) == 5
    assert all(isinstance(i, str) for i in found)


@pytest.mark.parametrize(
    ("encoding", "octets", "said"),
    [
        ("SQL_ASCII", "736368f66e20", "invalid byte sequence .*: 0xf6 0x6e"),
        ("WIN1252", "736381", "character with byte sequence 0x81 in encoding .* has no equivalent"),
    ],
)
def test_a_text_that_is_no_utf_8_is_named(server_url, encoding, octets, said):
    """As databases of the encoding SQL_ASCII have it, which check nothing, and those of a code page with gaps."""
    name = f"bge_test_{uuid.uuid4().hex[:12]}"
    administer(server_url, f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    try:
        with Database(server_url.set(database=name)) as database:
            execute(database, "CREATE EXTENSION vector")
            execute(database, "CREATE TABLE notes (id bigint PRIMARY KEY, text text, v vector(2))")
            latin = f"convert_from(decode('{octets}', 'hex'), '{encoding}')"
            execute(
                database,
                f"INSERT INTO notes SELECT n, CASE n WHEN 3 THEN {latin} ELSE 'text' END FROM generate_series(1, 5) n",
            )
            with pytest.raises(TargetTableError, match=rf"is no UTF-8, which every model reads: {said}"):
                pages(database, replace(SEGMENTS, table="notes", embedding_column="v"), 100)
    finally:
        administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_table(database, column):
    execute(database, "INSERT INTO notes SELECT n, repeat('word ', 40) FROM generate_series(1, 60000) n")
    # The rows of a window are those of so many pages, and autovacuum would say in between how many are in a page.
    execute(database, "ANALYZE notes")

    def peak(upper):
        with database.autocommit() as connection:
            tracemalloc.start()
            rows = 0
            for batch in read_pending(connection, column, "v", 100):
                rows += len(batch)
                if rows >= upper:
                    break
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

    peak(200)
    assert peak(60_000) < 1.5 * peak(20_000)


def test_a_batch_can_be_cut_and_put_together():
    batch = PendingBatch([1, 2, 3], [10, 20, 30], ["a", "b", "c"], [7, 7, 8])
    assert batch.only([2, 0]) == PendingBatch([3, 1], [30, 10], ["c", "a"], [8, 7])
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
