"""A part of a table gets vectors, an index and a judgement of its own; the other rows are left as they are."""

from __future__ import annotations

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.pending import count_rows
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.database.sampling import sample_percent, sample_texts, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, EmbeddingSpaceMismatch, PhaseError, TargetTableError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.search import Retriever
from bge_pipeline_tests.support import (
    ENCODER,
    as_it_stands,
    columns_of,
    execute,
    fill_and_swap,
    scalar,
    schema_of,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

ODD = {"target_where": "id % 3 = 1 -- one tenant"}
IDS = list(range(1, 301, 3))


@pytest.fixture
def odd(make_settings):
    return make_settings(**ODD, quality_gate="enforce", benchmark_texts=50)


def with_vector(database):
    return [row[0] for row in execute(database, "SELECT id FROM segments WHERE embedding_384 IS NOT NULL ORDER BY 1")]


def test_a_part_is_filled_indexed_and_judged_and_nothing_is_exchanged(database, odd):
    service = EmbeddingsService(ENCODER, odd)
    before = execute(database, "SELECT id, embedding::text FROM segments ORDER BY 1")
    said = plan(Migration(database, odd), service)
    assert said.obstacles == ()
    assert (said.rows, said.pending) == (100, 100)
    assert "TARGET_WHERE takes 100 of 300 rows. The other 200 get no vector" in said.notices[0]
    assert 'ORDER BY "embedding_384" <=> <vector>' in said.notices[0]

    result = migrate(Migration(database, odd), service)
    assert result.backfill.rows == 100
    assert not result.swap.exchanged
    assert result.swap.column == "embedding_384"
    assert result.swap.gate.passed
    assert "embedding_384" in result.swap.notices[0]
    assert with_vector(database) == IDS
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    assert execute(database, "SELECT id, embedding::text FROM segments ORDER BY 1") == before
    assert columns_of(database)["embedding"] == "vector(1536)"
    status = read_status(Migration(database, odd))
    assert (status.phase, status.rows, status.embedded, status.pending, status.without_text) == (
        "backfilled",
        100,
        100,
        0,
        0,
    )
    assert "nothing is exchanged" in status.next_step
    assert status.warnings == ()
    report = benchmark(Migration(database, odd), service, batch_sizes=(8,))
    assert report.rows == 100
    assert report.index_seconds > 0
    assert next(phase.detail for phase in report.phases if phase.act == "index").endswith(" built")
    again = migrate(Migration(database, odd), service)
    assert (again.backfill.rows, again.swap.index_built) == (0, False)

    ((row_id, words),) = execute(database, "SELECT id, text FROM segments WHERE id = 4")
    retriever = Retriever(database, odd, service, column="embedding_384")
    for mode in ("dense", "hybrid", "lexical"):
        found = [hit.id for hit in retriever.search(words, mode=mode, top_k=50).results]
        assert row_id in found
        assert set(found) <= set(IDS)

    with pytest.raises(PhaseError, match="old column") as refused:
        retire(Migration(database, odd))
    assert "other rows" in refused.value.next_step
    assert collapse(Migration(database, odd)) == "embedding_384"
    assert execute(database, "SELECT id, embedding::text FROM segments ORDER BY 1") == before


def test_what_reads_the_old_column_is_in_nobodys_way_as_nothing_is_exchanged(database, odd):
    execute(database, "CREATE VIEW old_vectors AS SELECT id, embedding FROM segments")
    service = EmbeddingsService(ENCODER, odd)
    assert plan(Migration(database, odd), service).obstacles == ()

    assert migrate(Migration(database, odd), service).swap.index_built
    assert scalar(database, "SELECT count(embedding) FROM old_vectors") == 300


def test_rows_that_come_into_the_part_wait_and_those_that_leave_it_lose_their_vector(database, make_settings):
    execute(database, "ALTER TABLE segments ADD COLUMN tenant int NOT NULL DEFAULT 1")
    execute(database, "UPDATE segments SET tenant = 7 WHERE id <= 50")
    settings = make_settings(target_where="tenant = 7")
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), ENCODER)
    assert len(with_vector(database)) == 50
    execute(database, "UPDATE segments SET tenant = 7 WHERE id = 60")
    execute(database, "UPDATE segments SET tenant = 1 WHERE id = 10")
    execute(database, "UPDATE segments SET text = 'else' WHERE id IN (20, 70)")
    assert 10 not in with_vector(database)
    assert 20 not in with_vector(database)
    assert embed_pending(Migration(database, settings)).backfill.rows == 2
    assert with_vector(database) == [i for i in range(1, 51) if i != 10] + [60]
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_counts_ranges_and_samples_are_those_of_the_part(database, odd):
    target = TargetTable.from_settings(odd)
    expand(Migration(database, odd), ENCODER.space)
    with database.autocommit() as connection:
        kind = describe_table(connection, target).id_kind
        ranges = cut_ranges(connection, target, kind, 40)
        assert count_rows(connection, target, "embedding_384").rows == 100
        odd_texts = set(sample_texts(connection, target, 500))
    assert odd_texts == {row[0] for row in execute(database, "SELECT text FROM segments WHERE id % 3 = 1")}
    assert [backfill(Migration(database, odd), ENCODER, id_range).rows for id_range in ranges] == [40, 40, 20]
    with database.autocommit() as connection:
        assert set(sample_vectors(connection, target, ["embedding"], 500).ids) == set(IDS)


@pytest.mark.parametrize("id_type", ["bigint", "uuid", "text"])
def test_the_ranges_of_a_part_hold_rows_that_come_into_it_later(database, make_settings, id_type):
    if id_type != "bigint":
        made = "lpad(to_hex(id), 32, '0')::uuid" if id_type == "uuid" else "lpad(id::text, 5, '0')"
        as_it_stands(database, "ALTER TABLE segments ALTER COLUMN id DROP IDENTITY")
        as_it_stands(database, f"ALTER TABLE segments ALTER COLUMN id TYPE {id_type} USING {made}")
    as_it_stands(database, "ALTER TABLE segments ADD COLUMN tenant int, ADD COLUMN nr int")
    as_it_stands(
        database,
        "UPDATE segments s SET nr = n, tenant = CASE WHEN n BETWEEN 100 AND 199 THEN 7 END "
        "FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM segments) o WHERE o.id = s.id",
    )
    settings = make_settings(target_where="tenant = 7")
    target = TargetTable.from_settings(settings)
    expand(Migration(database, settings), ENCODER.space)
    with database.autocommit() as connection:
        kind = describe_table(connection, target).id_kind
        ranges = cut_ranges(connection, target, kind, 40)
        assert len(ranges) == 3
    execute(database, "UPDATE segments SET tenant = 7 WHERE nr IN (1, 250)")
    with database.autocommit() as connection:
        ranges += cut_ranges(connection, target, kind, 40, above=ranges[-1].upper)
    assert [backfill(Migration(database, settings), ENCODER, id_range).rows for id_range in ranges] == [41, 40, 20, 1]


def test_a_small_part_of_a_large_table_is_sampled_in_as_many_pages_as_it_takes(database, make_settings):
    as_it_stands(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
        "SELECT source_id, video_id, n, n, 'text ' || n FROM segments, generate_series(1, 80000) n WHERE id = 1",
    )
    as_it_stands(database, "ANALYZE segments")
    whole, part = (TargetTable.from_settings(make_settings(**where)) for where in ({}, {"target_where": "id <= 300"}))
    with database.autocommit() as connection:
        assert sample_percent(connection, whole, 300) < 5
        assert sample_percent(connection, part, 300) == 100


def test_the_index_of_pending_rows_holds_those_of_the_part_alone(database, odd):
    expand(Migration(database, odd), ENCODER.space)
    backfill(Migration(database, odd), ENCODER)
    ((definition,),) = execute(
        database, "SELECT indexdef FROM pg_indexes WHERE tablename = 'segments' AND indexname LIKE '%pending'"
    )
    assert "WHERE (((id % (3)::bigint) = 1) AND (embedding_384 IS NULL))" in definition
    assert require_table(Migration(database, odd)).phase == "backfilled"
    execute(database, "UPDATE segments SET text = 'else'")
    as_it_stands(database, "ANALYZE segments")
    entries = "SELECT reltuples FROM pg_class WHERE relname IN (SELECT indexname FROM pg_indexes WHERE indexname ~ 'pending$')"
    assert scalar(database, entries) == 100


def test_another_part_or_the_whole_table_is_refused_for_the_same_column(database, odd, make_settings):
    expand(Migration(database, odd), ENCODER.space)
    for settings in (make_settings(), make_settings(target_where="id % 3 = 2")):
        with pytest.raises(EmbeddingSpaceMismatch, match="WHERE"):
            backfill(Migration(database, settings), ENCODER)
    collapse(Migration(database, odd))
    fill_and_swap(Migration(database, make_settings()))
    before = schema_of(database)
    with pytest.raises(EmbeddingSpaceMismatch, match="WHERE"):
        expand(Migration(database, odd), ENCODER.space)
    assert schema_of(database) == before, "a part must not take the trigger from the rows outside it"


@pytest.mark.parametrize(
    "condition",
    [
        "text",
        "id = 1; DROP TABLE sources",
        "id = 1) OR EXISTS (SELECT FROM sources",
        "start_sec < random()",
        "id IN (SELECT 1)",
    ],
)
def test_what_is_no_condition_over_one_row_is_refused(database, make_settings, condition):
    settings = make_settings(target_where=condition)
    before = schema_of(database)
    with pytest.raises(TargetTableError, match="TARGET_WHERE"):
        expand(Migration(database, settings), ENCODER.space)
    assert schema_of(database) == before
    assert scalar(database, "SELECT count(*) FROM sources") > 0


@pytest.mark.parametrize("name", ["old_index", "old_embedding"])
def test_a_part_may_not_drop_what_the_other_rows_are_searched_by(make_settings, name):
    with pytest.raises(ConfigurationError, match="TARGET_WHERE: expected OLD_INDEX=keep and OLD_EMBEDDING=keep"):
        make_settings(**ODD, **{name: "drop"})
