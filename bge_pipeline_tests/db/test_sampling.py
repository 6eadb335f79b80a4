"""Samples of rows: of a table of many small partitions too, whose pages have the same few numbers."""

from __future__ import annotations

import pytest

from bge_pipeline.database.sampling import sample_texts, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline_tests.partitions import make_small_partitions
from bge_pipeline_tests.support import execute

PARTITIONS, ROWS_OF_EACH = 150, 20
NOTES = TargetTable("public", "notes", ("id",), "text", "embedding")


@pytest.fixture
def small_partitions(database):
    make_small_partitions(database, PARTITIONS, ROWS_OF_EACH)
    return database


@pytest.mark.pgvector
@pytest.mark.parametrize("seed", range(6))
def test_a_sample_of_small_partitions_is_of_some_of_them(small_partitions, seed):
    with small_partitions.autocommit() as connection:
        texts = sample_texts(connection, NOTES, 300, seed=seed)
        vectors = sample_vectors(connection, NOTES, ["embedding"], 300, seed=seed)
    assert len(texts) > 150
    assert len(vectors) > 150
    partitions = {int(text.split()[1]) // ROWS_OF_EACH for text in texts}
    assert 10 < len(partitions) < 80, "about a fifth of the pages"


@pytest.mark.pgvector
def test_few_rows_out_of_a_table_of_many_pages_are_some(database):
    execute(database, "CREATE TABLE notes (id bigint PRIMARY KEY, text text NOT NULL, embedding vector(3))")
    execute(
        database, "INSERT INTO notes SELECT n, 'note ' || n, '[1,2,3]' FROM generate_series(1, 20000) n; ANALYZE notes"
    )
    with database.autocommit() as connection:
        found = [len(sample_vectors(connection, NOTES, ["embedding"], 32, seed=seed)) for seed in range(40)]
    assert found == [32] * 40
