"""Old columns of every pgvector type go through all phases; what of them cannot be compared is said, the rest is measured."""

from __future__ import annotations

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.indexes import drop_index, vector_indexes_on
from bge_pipeline.database.sampling import dimensions_in, sample_vectors
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.swap import swap
from bge_pipeline.phases.verdict import judge_quality
from bge_pipeline.quality.index_recall import recall_at_k, recommend_for_recall
from bge_pipeline.search import Retriever
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    agreed,
    as_it_stands,
    columns_of,
    execute,
    store_vectors,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

TYPES = {
    "two dimensions": "vector",
    "halfvec": "halfvec(1536)",
    "halfvec of no dimensions": "halfvec",
    "sparse": "sparsevec(1536)",
    "sparse, longer than a vector can be": "sparsevec(30522)",
    "bits": "bit(1536)",
}
EVERY_TIME = ("sparse",)
SINCE_07 = [
    pytest.param(name, marks=[pytest.mark.pgvector("0.7"), *([] if name in EVERY_TIME else [pytest.mark.thorough])])
    for name in TYPES
    if name != "two dimensions"
]
OF_VECTOR = {
    "sparse, longer than a vector can be": "('{' || id % 30000 + 1 || ':1}/30522')::sparsevec",
    "bits": "binary_quantize(embedding)",
}
"""How the values are made where a cast does not do."""


def give_type(database, name):
    """The demo's embedding column as another type; 100 of the 300 rows of the untyped one have 384 dimensions."""
    with database.autocommit() as connection:
        table = describe_table(connection, SEGMENTS)
        for index in vector_indexes_on(connection, table.oid, table.embedding.number):
            drop_index(connection, "public", index.name)
    as_it_stands(database, f"ALTER TABLE segments ADD COLUMN other {TYPES[name]}")
    as_it_stands(database, f"UPDATE segments SET other = {OF_VECTOR.get(name, 'embedding')}")
    as_it_stands(database, "ALTER TABLE segments DROP COLUMN embedding")
    as_it_stands(database, "ALTER TABLE segments RENAME COLUMN other TO embedding")
    if name == "two dimensions":
        as_it_stands(database, "UPDATE segments SET embedding = (embedding::real[])[1:384]::vector WHERE id % 3 = 0")


@pytest.mark.parametrize("name", ["two dimensions", *SINCE_07])
def test_every_type_goes_through_all_phases_with_the_gate_enforced(database, make_settings, name):
    settings = make_settings(quality_gate="enforce", benchmark_texts=20)
    service = EmbeddingsService(ENCODER, settings)
    give_type(database, name)
    held = columns_of(database)["embedding"]
    said = plan(Migration(database, settings), service)
    assert said.obstacles == ()
    before = benchmark(Migration(database, settings), service)
    is_searched = name not in ("bits", "sparse", "sparse, longer than a vector can be")
    assert [run.name for run in before.search] == ["old dense"] * is_searched
    assert before.storage.new_vector_bytes is None
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), ENCODER)
    measured = judge_quality(Migration(database, settings), service).measured
    assert measured.stored_vectors.matching_share == 1.0
    if name in ("bits", "sparse, longer than a vector can be"):
        assert any("judges the new vectors alone" in notice for notice in said.notices)
        assert measured.neighbours is None
        assert measured.stored_vectors.rows == 200
    else:
        assert not any("judges the new vectors alone" in notice for notice in said.notices)
        assert measured.neighbours.rows == (200 if name == "two dimensions" else 300)
    result = swap(Migration(database, settings), service)
    assert result.exchanged
    assert result.gate.passed
    assert wrong_vectors(database, ENCODER, "embedding") == []
    benchmark(Migration(database, settings), service)
    rollback(Migration(database, settings))
    assert columns_of(database)["embedding"] == held
    swap(Migration(database, agreed(Migration(database, settings))), service)
    retire(Migration(database, settings))
    assert require_table(Migration(database, settings)).phase == "retired"
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_plan_says_which_dimensions_an_untyped_column_holds_and_warns_only_of_equal_ones(database, migration, settings):
    service = EmbeddingsService(ENCODER, settings)
    as_it_stands(database, "ALTER TABLE segments ALTER COLUMN embedding TYPE vector")
    assert plan(migration, service).notices == (
        "the old column 'embedding' is of no fixed dimensions: of its sampled rows 300 with 1,536 dimensions",
    )
    give_type(database, "two dimensions")
    told, equal = plan(migration, service).notices
    assert "200 with 1,536 dimensions and 100 with 384 dimensions" in told
    assert "compared on rows of 1,536" in told
    assert "BOTH HAVE 384 DIMENSIONS" in equal
    with database.autocommit() as connection:
        assert dimensions_in(connection, SEGMENTS, "embedding") == {1536: 200, 384: 100}
        assert sample_vectors(connection, SEGMENTS, ["embedding"], 500).vectors["embedding"].shape == (200, 1536)


def test_an_untyped_column_is_searched_and_measured_among_rows_of_the_querys_dimensions(database, make_settings):
    settings = make_settings(search_probes=10)
    encoder = HashingEncoder(dimensions=1536)
    store_vectors(database, "embedding", encoder)
    give_type(database, "two dimensions")
    as_it_stands(
        database,
        "CREATE INDEX small ON segments USING hnsw ((embedding::vector(384)) vector_cosine_ops) "
        "WHERE vector_dims(embedding) = 384",
    )
    retriever = Retriever(database, settings, query_encoder=encoder)
    ((row_id, words),) = execute(database, "SELECT id, text FROM segments WHERE id % 3 = 1 ORDER BY id LIMIT 1")
    hits = retriever.search(words, mode="dense", top_k=20).results
    assert hits[0].id == row_id
    assert all(hit.id % 3 for hit in hits)
    as_it_stands(database, "DROP INDEX small")
    as_it_stands(
        database,
        "CREATE INDEX large ON segments USING hnsw ((embedding::vector(1536)) vector_cosine_ops) "
        "WHERE vector_dims(embedding) = 1536",
    )
    assert retriever.search(words, mode="dense", top_k=20).results[0].id == row_id
    assert recall_at_k(database, settings, samples=20).recall > 0.9
    assert recommend_for_recall(database, settings, samples=20).reached


@pytest.mark.parametrize(
    ("name", "index"),
    [
        (
            "two dimensions",
            "((embedding::vector(1536)) vector_cosine_ops) WHERE vector_dims(embedding) = 1536",
        ),
        pytest.param(
            "sparse, longer than a vector can be", "(embedding sparsevec_cosine_ops)", marks=pytest.mark.pgvector("0.7")
        ),
        pytest.param("bits", "(embedding bit_hamming_ops)", marks=pytest.mark.pgvector("0.7")),
    ],
)
def test_the_new_index_is_of_the_old_ones_method_whatever_the_old_type(database, migration, name, index):
    give_type(database, name)
    as_it_stands(database, f"CREATE INDEX theirs ON segments USING hnsw {index}")
    assert plan(migration, EmbeddingsService(ENCODER, migration.settings)).index.method == "hnsw"
