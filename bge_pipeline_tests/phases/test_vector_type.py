"""A new column of float16 is stored, indexed, judged, searched, exchanged and taken back as one of float32 is."""

from __future__ import annotations

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.indexes import vector_indexes_on
from bge_pipeline.database.pgvector_version import version_obstacle
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, PhaseError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.sql_for_review import expand_script, swap_script
from bge_pipeline.phases.swap import swap
from bge_pipeline.phases.verify import verify_unit_length
from bge_pipeline.quality.index_recall import recall_at_k
from bge_pipeline.search import Retriever
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    agreed,
    as_it_stands,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    parsed,
    scalar,
)

pytestmark = pytest.mark.pgvector


@pytest.fixture
def half(make_settings):
    return make_settings(target_vector_type="halfvec", quality_gate="enforce", benchmark_texts=20)


def far_off(database, column="embedding"):
    """Ids of rows whose vector is not what the encoder makes of their text, to float16."""
    rows = execute(database, f"SELECT id, text, {column}::text FROM segments WHERE {column} IS NOT NULL")
    made = ENCODER.encode(ENCODER.tokenize([row[1] for row in rows]))
    return [row[0] for row, vector in zip(rows, made, strict=True) if abs(vector - parsed(row[2])).max() > 1e-3]


@pytest.mark.pgvector("0.7")
@pytest.mark.parametrize("method", [pytest.param("ivfflat", marks=pytest.mark.thorough), "hnsw"])
def test_float16_goes_through_all_phases_with_the_gate_enforced(database, make_settings, method):
    settings = make_settings(
        target_vector_type="halfvec", quality_gate="enforce", benchmark_texts=20, index_method=method
    )
    service = EmbeddingsService(ENCODER, settings)
    planned = plan(Migration(database, settings), service)
    assert planned.obstacles == ()
    assert (planned.index.element, planned.index.column_type) == ("halfvec", "halfvec")
    expand(Migration(database, settings), ENCODER.space)
    assert columns_of(database)["embedding_384"] == "halfvec(384)"
    backfill(Migration(database, settings), ENCODER)
    assert verify_unit_length(Migration(database, settings)).passed
    assert swap(Migration(database, settings), service).gate.passed
    assert columns_of(database)["embedding"] == "halfvec(384)"
    with database.autocommit() as connection:
        table = describe_table(connection, SEGMENTS)
        (index,) = vector_indexes_on(connection, table.oid, table.embedding.number)
    assert f"USING {method} (embedding halfvec_cosine_ops)" in index.definition
    assert far_off(database) == []
    assert recall_at_k(database, settings, samples=30).recall > 0.95
    assert benchmark(Migration(database, settings), service).storage.new_vector_bytes == 8 + 2 * 384

    execute(database, "UPDATE segments SET text = 'an oryx by the river' WHERE id = 3")
    embed_pending(Migration(database, settings))
    assert far_off(database) == []
    retriever = Retriever(database, settings, service)
    assert retriever.search("an oryx by the river", mode="dense").results[0].id == 3
    used = as_it_stands(
        database,
        "SET LOCAL enable_seqscan = off; EXPLAIN SELECT id FROM segments "
        "ORDER BY embedding <=> (SELECT embedding FROM segments WHERE id = 3) LIMIT 5",
    )
    assert index.name in str(used)

    rollback(Migration(database, settings))
    assert columns_of(database)["embedding"] == "vector(1536)"
    swap(Migration(database, agreed(Migration(database, settings))), service)
    retire(Migration(database, settings))
    assert columns_of(database)["embedding"] == "halfvec(384)"
    planned = plan(Migration(database, settings), service)
    assert planned.step is None


@pytest.mark.pgvector("0.7")
def test_float16_takes_half_the_space(database, migration):
    fill(migration)
    whole = scalar(database, "SELECT sum(pg_column_size(embedding_384)) FROM segments")
    execute(database, "CREATE TABLE halves AS SELECT CAST(embedding_384 AS halfvec(384)) AS v FROM segments")
    assert scalar(database, "SELECT sum(pg_column_size(v)) FROM halves") < 0.52 * whole


@pytest.mark.pgvector("0.7")
def test_another_type_than_that_of_the_column_being_filled_is_refused(database, migration, half):
    fill(Migration(database, half))
    with pytest.raises(PhaseError, match=r"is halfvec\(384\), and the settings ask for vector\(384\)") as refused:
        expand(migration, ENCODER.space)
    assert "TARGET_VECTOR_TYPE=halfvec" in refused.value.next_step
    assert backfill(migration, ENCODER).rows == 0


def test_a_script_for_review_has_the_type_and_an_index_without_a_cast(half):
    script = "; ".join(
        str(statement)
        for script in (expand_script(SEGMENTS, half, ENCODER.space), swap_script(SEGMENTS, half, ENCODER.space))
        for statement in (*script.alone, *script.together)
    )
    assert '"embedding_384" halfvec(384)' in script
    assert '("embedding_384" halfvec_cosine_ops)' in script


def test_settings_that_contradict_each_other_and_an_old_pgvector_are_refused(
    database, make_settings, half, monkeypatch
):
    with pytest.raises(ConfigurationError, match="INDEX_ELEMENT: expected auto or halfvec"):
        make_settings(target_vector_type="halfvec", index_element="vector")
    monkeypatch.setattr("bge_pipeline.database.pgvector_version.pgvector_version", lambda _: "0.6.2")
    with database.autocommit() as connection:
        assert "TARGET_VECTOR_TYPE=halfvec: expected pgvector 0.7" in version_obstacle(connection, half).message


def test_not_null_and_default_are_remembered_said_and_come_back(database, migration):
    zeros = "array_fill(0, ARRAY[1536])::vector"
    as_it_stands(
        database,
        f"ALTER TABLE segments ALTER COLUMN embedding SET NOT NULL, ALTER COLUMN embedding SET DEFAULT {zeros}",
    )
    not_null, default = fill_and_swap(migration).notices
    assert "'embedding' was NOT NULL and no longer is" in not_null
    assert "had DEFAULT" in default
    assert "stays with the old vectors" in default
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
        "SELECT source_id, video_id, 0, 0, 'new' FROM segments WHERE id = 1",
    )
    assert scalar(database, "SELECT count(*) FROM segments WHERE embedding IS NULL") == 1
    embed_pending(migration)
    (reminder,) = rollback(migration).notices
    assert "array_fill" in scalar(
        database,
        "SELECT column_default FROM information_schema.columns WHERE table_name = 'segments' AND column_name = 'embedding'",
    )
    as_it_stands(database, reminder.rpartition(": ")[2])
    fill_and_swap(migration)
    assert "NOT NULL" in retire(migration).notices[0]
