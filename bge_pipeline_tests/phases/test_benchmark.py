"""The benchmark says what it measured on the table as it is, in every phase, and leaves the table alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.quality import search_runs
from bge_pipeline.quality.judgements import JudgedQueries, write_judged_queries
from bge_pipeline.report.benchmark import BenchmarkReport
from bge_pipeline.report.pages import as_markdown
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import ENCODER, execute, fill, fill_and_swap, scalar, schema_of

pytestmark = pytest.mark.pgvector


def measured(database: Database, settings: Settings) -> BenchmarkReport:
    return benchmark(Migration(database, settings), EmbeddingsService(ENCODER, settings), batch_sizes=(8,))


def acts(report: BenchmarkReport) -> list[str]:
    return [phase.act for phase in report.phases]


def test_before_a_migration_the_old_column_alone_is_searched(database: Database, settings: Settings) -> None:
    before = schema_of(database)

    report = measured(database, settings)

    assert (report.phase, report.rows, acts(report)) == ("legacy", 300, [])
    assert [run.name for run in report.search] == ["old dense"]
    assert report.gate is None
    assert schema_of(database) == before


def test_after_the_swap_both_columns_are_timed_and_the_index_is_held_against_exact_search(
    database: Database, migration: Migration, settings: Settings
) -> None:
    fill_and_swap(migration)

    report = measured(database, settings)

    runs = {run.name: run for run in report.search}
    assert set(runs) == {"old dense", "new dense", "new hybrid"}
    # The old index was dropped, so that its column is searched exactly.
    assert runs["old dense"].recall == 1.0
    assert 0 < runs["new dense"].recall <= 1.0
    assert runs["new hybrid"].recall is None
    assert all(0 < run.p50_milliseconds <= run.p95_milliseconds for run in runs.values())
    assert report.storage.old_vector_bytes == 4 * 1536 + 8
    assert report.storage.new_vector_bytes == 4 * 384 + 8
    assert acts(report) == ["expand", "backfill", "swap"]
    assert report.lock_milliseconds > 0


def test_judged_queries_are_all_asked_and_judged(
    database: Database, make_settings: Callable[..., Settings], tmp_path
) -> None:
    text = execute(database, "SELECT text FROM segments WHERE id = 7")[0].text
    write_judged_queries(
        tmp_path / "queries.jsonl", JudgedQueries({"1": text, "2": "nothing like it"}, {"1": {"7": 1}, "2": {"9": 1}})
    )
    settings = make_settings(eval_queries=tmp_path / "queries.jsonl")
    fill_and_swap(Migration(database, settings))

    report = measured(database, settings)

    runs = {run.name: run for run in report.search}
    assert {run.queries for run in runs.values()} == {2}
    assert runs["new dense"].ndcg >= 0.5
    assert report.as_metadata()["new_dense_ndcg"] == runs["new dense"].ndcg


@pytest.mark.thorough
def test_the_phases_are_those_of_the_latest_migration(
    database: Database, migration: Migration, settings: Settings
) -> None:
    fill(migration)
    collapse(migration)
    fill_and_swap(migration)
    retire(migration)
    assert acts(measured(database, settings)) == ["expand", "backfill", "swap", "retire"]

    following = settings.model_copy(update={"embedding_dimensions": 64})
    encoder = type(ENCODER)(64)
    expand(Migration(database, following), encoder.space, begin_next=True)
    backfill(Migration(database, following), encoder)

    report = benchmark(Migration(database, following), EmbeddingsService(encoder, following), batch_sizes=(8,))

    assert acts(report) == ["expand", "backfill"]
    assert report.storage.new_vector_bytes == 4 * 64 + 8


def test_a_table_without_rows_is_reported_as_such(database: Database, settings: Settings) -> None:
    execute(database, "DELETE FROM segments")

    report = measured(database, settings)

    assert (report.rows, report.encode, report.search) == (0, (), ())
    assert report.as_metadata()["rows"] == 0
    assert "0 rows, legacy" in as_markdown(report)
    assert "the table has no text: nothing was encoded" in report.notes
    assert "search was not measured: the table has no vectors" in report.notes


@pytest.mark.parametrize("is_judged", [False, True])
def test_where_each_search_takes_long_fewer_are_timed_and_the_report_says_so(
    database: Database, make_settings: Callable[..., Settings], tmp_path, monkeypatch, is_judged
) -> None:
    queries = {str(i): f"query {i}" for i in range(1, 9)}
    write_judged_queries(tmp_path / "queries.jsonl", JudgedQueries(queries, {i: {i: 1} for i in queries}))
    monkeypatch.setattr(search_runs, "_SECONDS", 0.0)

    report = measured(database, make_settings(eval_queries=tmp_path / "queries.jsonl" if is_judged else None))

    (run,) = report.search
    assert run.queries == 5
    assert f"old dense: 5 of {8 if is_judged else 50} queries were searched" in " ".join(report.notes)


def test_an_old_model_that_is_recorded_and_not_at_hand_is_searched_by_stored_vectors(
    database: Database, migration: Migration, settings: Settings
) -> None:
    fill_and_swap(migration)
    note = scalar(
        database,
        "SELECT col_description('segments'::regclass, attnum) FROM pg_attribute "
        "WHERE attrelid = 'segments'::regclass AND attname = 'embedding_1536'",
    )
    with database.transaction() as connection:
        connection.exec_driver_sql(
            "COMMENT ON COLUMN segments.embedding_1536 IS %s", (note.replace('"hashing', '"somebody/else'),)
        )

    report = measured(database, settings)

    assert [run.encodes for run in report.search if run.name == "old dense"] == [False]
    assert any("the old model is not at hand" in line for line in report.notes)
    assert report.side_by_side is not None
    assert all(pair.row_id is not None for pair in report.side_by_side.pairs)
