"""Exact search for many queries reads the table once, and finds what PostgreSQL finds."""

from __future__ import annotations

import numpy as np
import pytest

from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.quality.exact import nearest_rows
from bge_pipeline.search.column import read_column
from bge_pipeline_tests.support import SEGMENTS, execute

pytestmark = pytest.mark.pgvector

METRICS = {"cosine": ("vector_cosine_ops", "<=>"), "l2": ("vector_l2_ops", "<->"), "ip": ("vector_ip_ops", "<#>")}


def found(database, settings, queries, k, **options):
    with database.autocommit() as connection:
        return nearest_rows(connection, read_column(connection, settings), queries, k, **options)


@pytest.fixture
def queries(database):
    with database.autocommit() as connection:
        stored = sample_vectors(connection, SEGMENTS, ["embedding"], 12).vectors["embedding"]
    return (stored * 2 + np.random.default_rng(3).standard_normal(stored.shape) * 0.01).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_the_neighbours_and_their_distances_are_postgres_own(database, settings, queries, metric, monkeypatch):
    monkeypatch.setattr("bge_pipeline.quality.exact._BLOCK_BYTES", 100_000)  # several blocks
    operator_class, operator = METRICS[metric]
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, f"CREATE INDEX one ON segments USING hnsw (embedding {operator_class})")
    result = found(database, settings, queries, 7)
    for query, ids, distances in zip(queries, result.ids, result.distances, strict=True):
        rows = execute(
            database,
            f"SELECT id, embedding {operator} CAST(:query AS vector) AS d FROM segments ORDER BY d LIMIT 7",
            query=str(query.tolist()),
        )
        assert distances == pytest.approx([row[1] for row in rows], abs=1e-4)
        assert len(set(ids)) == 7
        assert set(ids) >= {row[0] for row in rows if row[1] < rows[-1][1] - 1e-4}


def test_the_table_is_read_once_for_all_queries(database, settings, queries):
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'segments'"
    execute(database, "SELECT pg_stat_force_next_flush()")
    ((before,),) = execute(database, scans)
    told = []
    found(database, settings, queries, 5, on_rows=told.append)
    with database.autocommit() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    database.close()
    ((after,),) = execute(database, scans)
    assert after - before == 1
    assert told[-1] == 300


def test_rows_without_direction_come_last_or_not_at_all(database, settings, queries):
    zero = str([0.0] * 1536)
    execute(database, "UPDATE segments SET embedding = CAST(:zero AS vector) WHERE id <= 295", zero=zero)
    result = found(database, settings, queries, 10)
    assert all(sorted(ids) == [296, 297, 298, 299, 300] for ids in result.ids)


def test_a_query_without_direction_has_no_neighbours(database, settings, queries):
    queries[1] = 0
    result = found(database, settings, queries, 10)
    assert [len(ids) for ids in result.ids[:3]] == [10, 0, 10]


def test_uuids_come_back_as_they_are_written(database, make_settings, queries):
    execute(database, "CREATE TABLE notes (id uuid PRIMARY KEY, text text, embedding vector(1536))")
    execute(database, "INSERT INTO notes SELECT gen_random_uuid(), text, embedding FROM segments")
    result = found(database, make_settings(target_table="notes"), queries, 3)
    known = {str(row[0]) for row in execute(database, "SELECT id FROM notes")}
    assert all(set(ids) <= known and len(ids) == 3 for ids in result.ids)


def test_dimensions_that_are_not_the_queries_are_left_out(database, settings, queries):
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, "ALTER TABLE segments ALTER COLUMN embedding TYPE vector")
    execute(database, "UPDATE segments SET embedding = '[1,2,3]' WHERE id > 4")
    assert all(sorted(ids) == [1, 2, 3, 4] for ids in found(database, settings, queries, 10).ids)


def test_ids_that_differ_in_length_come_with_their_own_distances(database, settings, queries, monkeypatch):
    monkeypatch.setattr("bge_pipeline.quality.exact._BLOCK_BYTES", 100_000)  # rows that end in the next block
    by_integer = found(database, settings, queries, 7)
    execute(database, "ALTER TABLE segments ALTER COLUMN id DROP IDENTITY")
    execute(database, "ALTER TABLE segments ALTER COLUMN id TYPE text USING repeat('ü', CAST(id % 50 AS int)) || id")
    by_text = found(database, settings, queries, 7)
    assert by_text.ids == [[f"{'ü' * (i % 50)}{i}" for i in ids] for ids in by_integer.ids]
    assert [d.tolist() for d in by_text.distances] == [d.tolist() for d in by_integer.distances]
