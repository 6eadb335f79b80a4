"""Old and new results stand side by side, with what moved, came and went; with the old model at hand and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, PhaseError
from bge_pipeline.phases.compare_search import compare_search
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline_tests.support import ENCODER, execute, fill, fill_and_swap, schema_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def service(settings):
    return EmbeddingsService(ENCODER, settings)


def nearest(database: Database, column: str, row_id: str, k: int) -> list[str]:
    """The k rows nearest to a row by one column, that row left out, as PostgreSQL itself says."""
    rows = execute(
        database,
        f"SELECT s.id::text FROM segments s, segments q WHERE q.id::text = :id AND s.id <> q.id "
        f"ORDER BY s.{column} <=> q.{column}, s.id LIMIT {k}",
        id=row_id,
    )
    return [row[0] for row in rows]


def test_without_the_old_model_the_row_found_first_asks_both_columns(database, migration, service):
    execute(database, "COMMENT ON COLUMN segments.embedding IS NULL")
    fill(migration)
    before = schema_of(database)

    (pair,) = compare_search(migration, service, ["open a file and read its lines"], results=5).pairs

    assert pair.row_id is not None
    assert [hit.row_id for hit in pair.old] == nearest(database, "embedding", pair.row_id, 5)
    assert [hit.row_id for hit in pair.new] == nearest(database, "embedding_384", pair.row_id, 5)
    assert schema_of(database) == before


def test_each_hit_says_where_it_is_on_the_other_side(migration, service):
    fill_and_swap(migration)

    found = compare_search(migration, service, results=7)

    assert found.pairs
    assert "rows of the table as questions" in found.source
    for pair in found.pairs:
        old, new = [hit.row_id for hit in pair.old], [hit.row_id for hit in pair.new]
        assert len(old) == len(new) == 7
        assert pair.row_id not in old + new
        assert [hit.other_rank for hit in pair.new] == [old.index(i) + 1 if i in old else None for i in new]
        assert [hit.other_rank for hit in pair.old] == [new.index(i) + 1 if i in new else None for i in old]
        assert pair.summary().startswith(f"{len(set(old) & set(new))} of 7 stayed")


def test_with_both_models_at_hand_each_column_is_asked_by_its_own(migration, service):
    fill(migration)

    found = compare_search(migration, service, ["sort a list of numbers"])

    (pair,) = found.pairs
    assert pair.row_id is None
    assert found.source == "as asked"
    assert len(pair.old) == len(pair.new) == 10
    assert "1536 dimensions" in found.old
    assert "384 dimensions" in found.new


def test_questions_come_from_a_file(database, make_settings, service, tmp_path: Path):
    questions = tmp_path / "questions.txt"
    questions.write_text("how are sets compared\n\nhow are sets compared\nwhat is a generator\n")
    settings = make_settings(compare_queries=questions)
    fill_and_swap(Migration(database, settings))

    found = compare_search(Migration(database, settings), service)

    assert [pair.query for pair in found.pairs] == ["how are sets compared", "what is a generator"]


def test_questions_come_from_the_applications_log(database, make_settings, service):
    settings = make_settings(query_log="public.Asked.words")
    fill_and_swap(Migration(database, settings))
    execute(database, 'CREATE TABLE "Asked" (words text)')
    execute(database, "INSERT INTO \"Asked\" SELECT 'question ' || n % 3 FROM generate_series(1, 30) n")
    execute(database, "INSERT INTO \"Asked\" VALUES (NULL), ('  ')")

    found = compare_search(Migration(database, settings), service)

    assert sorted(pair.query for pair in found.pairs) == ["question 0", "question 1", "question 2"]


def test_a_log_that_is_not_there_is_named(database, make_settings, service):
    settings = make_settings(query_log="public.asked.words")
    fill_and_swap(Migration(database, settings))

    with pytest.raises(ConfigurationError, match=r"QUERY_LOG: there is no column public\.asked\.words"):
        compare_search(Migration(database, settings), service)


def test_one_column_alone_has_nothing_beside_it(migration, service):
    with pytest.raises(PhaseError, match="phase legacy: there are not two columns"):
        compare_search(migration, service)
    fill_and_swap(migration)
    retire(migration)
    with pytest.raises(PhaseError, match="phase retired: there are not two columns"):
        compare_search(migration, service)
