"""Partitions that are attached, made, detached and dropped, and rows that move between them, while a migration runs."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database import index_on_partitions
from bge_pipeline.errors import IndexBuildFailed
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pending_index import index_when_few_are_left
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.partitions import COLUMNS, divide
from bge_pipeline_tests.phases.test_partitioned import hnsw_of
from bge_pipeline_tests.support import (
    ENCODER,
    Wrapped,
    as_it_stands,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    scalar,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

BOUNDS = "FOR VALUES FROM (1000) TO (2000)"


def once(act):
    """A hook of an encoder that acts at its first batch."""
    left = [act]

    def hook(_texts):
        if left:
            left.pop()()

    return hook


def on_its_own(database, statement):
    """Run what stands in no transaction."""
    with database.autocommit() as connection:
        connection.exec_driver_sql(statement)


def test_a_table_is_attached_when_it_has_the_columns_that_the_plan_names(database, migration):
    divide(database)
    execute(database, f"CREATE TABLE late ({COLUMNS}, dropped text, PRIMARY KEY (id))")
    execute(database, "ALTER TABLE late DROP COLUMN dropped")
    execute(database, "INSERT INTO late (id, text) SELECT n, 'late ' || n FROM generate_series(1000, 1049) n")
    expand(migration, ENCODER.space)
    with pytest.raises(DBAPIError, match='child table is missing column "embedding_384"'):
        execute(database, f"ALTER TABLE segments ATTACH PARTITION late {BOUNDS}")
    execute(database, "ALTER TABLE late ADD COLUMN embedding_384 vector(384)")
    execute(database, f"ALTER TABLE segments ATTACH PARTITION late {BOUNDS}")
    assert backfill(migration, ENCODER).rows == 350
    execute(database, "UPDATE segments SET text = 'other' WHERE id = 1001")
    assert pending_ids(database) == [1001], "the trigger came with the partition"

    result = swap(migration)
    assert (result.exchanged, result.index_name) == (True, "old_name")
    assert columns_of(database, "late")["embedding"] == "vector(384)"
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert sorted(valid for _, valid, _ in hnsw_of(database)["late"]) == [True, True]

    execute(database, "ALTER TABLE segments DETACH PARTITION late")
    assert read_status(migration).rows == 300
    execute(database, f"ALTER TABLE segments ATTACH PARTITION late {BOUNDS}")
    assert read_status(migration).warnings == ()
    assert [attached for _, _, attached in hnsw_of(database)["late"]] == [True, True], "the indexes are taken up again"


def test_a_partition_detached_before_the_swap_keeps_its_columns_and_is_not_taken_back(database, migration):
    divide(database, "hash")
    fill(migration)
    execute(database, "ALTER TABLE segments DETACH PARTITION part_1")
    rows = scalar(database, "SELECT count(*) FROM segments")
    swap(migration)
    assert read_status(migration).embedded == rows
    assert columns_of(database, "part_1")["embedding"] == "vector(1536)"
    with pytest.raises(DBAPIError, match=r'child table .* different type for column "embedding"|missing column'):
        execute(database, "ALTER TABLE segments ATTACH PARTITION part_1 FOR VALUES WITH (MODULUS 3, REMAINDER 1)")


def test_a_partition_made_at_any_time_has_every_index(database, migration, caplog, monkeypatch):
    divide(database)
    fill(migration)
    execute(database, f"CREATE TABLE early PARTITION OF segments {BOUNDS}")
    execute(database, "INSERT INTO segments (id, text) VALUES (1500, 'early')")
    attach, late = index_on_partitions.in_short_transaction, iter(["2000) TO (3000", "3000) TO (4000"])

    def a_partition_comes_first(*arguments):
        for bounds in [next(late, None)]:
            if bounds is not None:
                execute(database, f"CREATE TABLE late_{bounds[:4]} PARTITION OF segments FOR VALUES FROM ({bounds})")
        return attach(*arguments)

    monkeypatch.setattr(index_on_partitions, "in_short_transaction", a_partition_comes_first)
    with caplog.at_level(logging.INFO):
        assert swap(migration).exchanged
    assert "has become a partition" in caplog.text
    for partition in ("early", "late_2000", "late_3000"):
        assert [(valid, attached) for _, valid, attached in hnsw_of(database)[partition]] == [(True, True)] * 2
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_partitions_that_come_faster_than_they_are_indexed_end_the_build_with_a_word(database, migration, monkeypatch):
    divide(database)
    fill(migration)
    attach, number = index_on_partitions.in_short_transaction, iter(range(1000, 2000))

    def another_one(*arguments):
        n = next(number)
        execute(database, f"CREATE TABLE late_{n} PARTITION OF segments FOR VALUES FROM ({n}) TO ({n + 1})")
        return attach(*arguments)

    monkeypatch.setattr(index_on_partitions, "in_short_transaction", another_one)
    with pytest.raises(IndexBuildFailed, match="came faster than they could be indexed") as failed:
        swap(migration)
    assert "search is as it was" in failed.value.state
    monkeypatch.undo()
    assert swap(migration).exchanged


def test_partitions_that_go_during_a_backfill_are_left_alone(database, migration):
    divide(database, "hash")
    expand(migration, ENCODER.space)

    def go():
        on_its_own(database, "ALTER TABLE segments DETACH PARTITION part_1 CONCURRENTLY")
        on_its_own(database, "DROP TABLE part_2")

    result = backfill(migration, Wrapped(before=once(go)))
    left = scalar(database, "SELECT count(*) FROM segments")
    assert 0 < left < 300
    assert (result.pending_after, result.rows) == (0, left)
    assert scalar(database, "SELECT count(embedding_384) FROM part_1") == 0, "it is somebody else's table now"
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_rows_that_move_while_they_are_embedded_are_found_where_they_are(database, make_settings):
    divide(database, "time")
    migration = Migration(database, make_settings(backfill_batch_rows=50))
    expand(migration, ENCODER.space)

    def move():
        execute(database, "UPDATE segments SET created_at = '2026-04-20' WHERE id % 3 = 0")
        execute(database, "UPDATE segments SET created_at = '2026-01-20', text = 'moved ' || id WHERE id % 7 = 0")

    assert backfill(migration, Wrapped(before=once(move))).pending_after == 0
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    execute(database, "UPDATE segments SET created_at = '2026-02-20' WHERE id = 1")
    execute(database, "UPDATE segments SET created_at = '2026-03-20', text = 'both' WHERE id = 2")
    assert pending_ids(database) == [2], "a row that moves takes its vector along unless its text changes"
    swap(migration)
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_no_row_gets_the_vector_of_another_with_its_id(database, migration):
    divide(database, "time")
    expand(migration, ENCODER.space)
    execute(
        database,
        "INSERT INTO segments (id, text, created_at) SELECT n, 'twin ' || n || ' of ' || m, timestamptz '2026-01-05' + m * "
        "interval '11 days' FROM generate_series(5, 60) n, generate_series(0, 7) m",
    )
    assert backfill(migration, ENCODER).pending_after == 0
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    index_when_few_are_left(migration)
    execute(database, "UPDATE segments SET text = 'again ' || created_at WHERE id = 7")
    assert embed_pending(migration).backfill.pending_after == 0
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_a_build_that_ends_in_the_middle_goes_on_where_it_stopped(database, migration, monkeypatch):
    divide(database)
    fill(migration)
    build, built = index_on_partitions.build_concurrently, []

    def two_and_no_more(database, table, name, *arguments, **keywords):
        if "hnsw" in name:
            if len(built) == 2:
                raise KeyboardInterrupt
            built.append(name)
        return build(database, table, name, *arguments, **keywords)

    monkeypatch.setattr(index_on_partitions, "build_concurrently", two_and_no_more)
    with pytest.raises(KeyboardInterrupt):
        swap(migration)
    monkeypatch.undo()
    assert len(built) == 2
    first, second = (scalar(database, f"SELECT '{name}'::regclass::oid") for name in built)
    as_it_stands(database, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{built[1]}'::regclass")
    assert swap(migration).exchanged
    oids = [row[0] for row in execute(database, "SELECT oid FROM pg_class WHERE relkind = 'i'")]
    assert first in oids, "what was whole is not built again"
    assert second not in oids, "what was not is"
    assert all(valid for indexes in hnsw_of(database).values() for _, valid, _ in indexes)


def test_after_the_swap_rows_of_new_partitions_are_embedded_and_found(database, migration):
    divide(database)
    fill_and_swap(migration)
    execute(database, f"CREATE TABLE late PARTITION OF segments {BOUNDS}")
    execute(database, "INSERT INTO segments (id, text) SELECT n, 'late ' || n FROM generate_series(1000, 1009) n")
    assert embed_pending(migration).backfill.rows == 10
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert read_status(migration).warnings == ()
