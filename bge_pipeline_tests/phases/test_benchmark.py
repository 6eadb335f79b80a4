"""The benchmark says what it measured on the table as it is, in every phase, and leaves the table alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import drop_index, vector_indexes_on
from bge_pipeline.database.journal import JournalEntry
from bge_pipeline.embedding.encoder import TextsRefused
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ChangedMeanwhile, ConfigurationError, EmbeddingSpaceMismatch
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.migration_times import migration_times
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.quality import search_runs
from bge_pipeline.quality.judgements import JudgedQueries, write_judged_queries
from bge_pipeline.report.benchmark import BenchmarkReport
from bge_pipeline.report.pages import as_markdown
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import ENCODER, SEGMENTS, Wrapped, execute, fill, fill_and_swap, scalar, schema_of

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
    assert run.queries == 1
    assert f"old dense: 1 of {8 if is_judged else 50} queries were searched" in " ".join(report.notes)


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


def names_of(report: BenchmarkReport) -> list[str]:
    return [run.name for run in report.search]


def test_of_a_large_table_no_way_of_searching_is_timed_that_reads_the_whole_of_it_for_each_query(
    database: Database, migration: Migration, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_and_swap(migration)
    with database.autocommit() as connection:
        table = describe_table(connection, SEGMENTS)
        for index in vector_indexes_on(connection, table.oid, table.with_role("previous").number):
            drop_index(connection, "public", index.name)
    execute(database, "ANALYZE segments")
    monkeypatch.setattr(search_runs, "MOST_PARSED_ROWS", 200)
    first = measured(database, settings)
    monkeypatch.setattr(search_runs, "MOST_COMPARED_ROWS", 200)
    second = measured(database, settings)

    assert names_of(first) == ["old dense", "new dense"]
    assert (
        "new hybrid was not measured: there is no index of words (bge-pipeline text-index), "
        "and each search would read all 300 texts" in first.notes
    )
    assert names_of(second) == ["new dense"]
    assert any(note.startswith("old dense was not measured: no index serves 'embedding_1536'") for note in second.notes)
    assert first.side_by_side is not None
    assert len(first.side_by_side.pairs) == 10


def test_another_model_than_the_columns_is_refused_before_anything_is_measured(
    database: Database, migration: Migration, settings: Settings
) -> None:
    fill_and_swap(migration)
    steps: list[str] = []
    following = settings.model_copy(update={"embedding_dimensions": 64})
    service = EmbeddingsService(type(ENCODER)(64), following)

    with pytest.raises(EmbeddingSpaceMismatch, match="384"):
        benchmark(Migration(database, following), service, on_step=steps.append)

    assert steps == []


def test_a_text_that_the_model_refuses_is_no_part_of_the_sample_once_it_is_in_quarantine(
    database: Database, migration: Migration, settings: Settings
) -> None:
    execute(database, "UPDATE segments SET text = 'REFUSED' WHERE id = 7")
    expand(migration, ENCODER.space)

    def refuse(texts: Sequence[str]) -> None:
        if "REFUSED" in texts:
            others = ENCODER.encode(ENCODER.tokenize(texts))
            raise TextsRefused("the encoder", {texts.index("REFUSED"): "as it is"}, others)

    encoder = Wrapped(before=refuse)
    service = EmbeddingsService(encoder, settings)

    before = benchmark(migration, service, batch_sizes=(8,))
    backfill(migration, encoder)
    after = benchmark(migration, service, batch_sizes=(8,))

    assert before.encode == ()
    assert (
        "encoding in batches of 8 was not measured: the encoder does not embed 1 of 300 texts; the first: as it is"
        in before.notes
    )
    assert [run.texts for run in after.encode] == [299]


@pytest.mark.thorough
def test_the_rates_of_the_backfill_are_not_those_of_the_rows_that_come_after_the_swap(
    database: Database, migration: Migration, settings: Settings
) -> None:
    fill_and_swap(migration)
    before = measured(database, settings)
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) SELECT 1, 'new', 0, 1, 'one more text'",
    )
    backfill(migration, ENCODER)
    after = measured(database, settings)

    assert acts(after) == ["expand", "backfill", "swap", "backfill"]
    for name in ("backfill_seconds", "backfill_texts_per_second", "write_rows_per_second"):
        assert getattr(after, name) == getattr(before, name) is not None


def test_a_pause_is_no_time_at_work_and_a_run_that_wrote_nothing_is_none_of_the_backfill() -> None:
    facts = {"rows": 100, "seconds": 60.0, "write_seconds": 4.0, "id_range": "all", "held_seconds": {"paused": 50.0}}
    idle = facts | {"rows": 0, "seconds": 500.0}

    times = migration_times(
        [JournalEntry("backfill", f"2026-11-29 12:00:0{n}+00", found) for n, found in enumerate((facts, idle))]
    )

    assert (times.backfill_seconds, times.backfill_texts_per_second) == (pytest.approx(10.0), pytest.approx(10.0))
    assert times.write_rows_per_second == 25.0


def test_an_old_column_without_vectors_is_left_out_and_the_new_one_measured(
    database: Database, migration: Migration, settings: Settings
) -> None:
    fill_and_swap(migration)
    execute(database, "UPDATE segments SET embedding_1536 = NULL")

    report = measured(database, settings)

    assert names_of(report) == ["new dense", "new hybrid"]
    assert report.search[0].recall is not None
    assert "search of 'embedding_1536' was not measured: no vector of it was found" in report.notes


@pytest.mark.thorough
def test_with_the_gate_off_the_new_index_is_measured_all_the_same(
    database: Database, migration: Migration, make_settings: Callable[..., Settings]
) -> None:
    fill_and_swap(migration)

    report = measured(database, make_settings(quality_gate="off"))

    assert report.gate_summary == "not measured"
    assert "quality was not measured: QUALITY_GATE=off" in report.notes
    assert {run.name: run.recall is None for run in report.search} == {
        "old dense": False, "new dense": False, "new hybrid": True,
    }  # fmt: skip


def test_a_declared_old_model_that_made_the_vectors_is_asked_before_a_migration(
    database: Database, make_settings: Callable[..., Settings]
) -> None:
    report = measured(database, make_settings(legacy_model="hashing"))

    assert [(run.name, run.encodes) for run in report.search] == [("old dense", True)]


def test_questions_that_cannot_be_read_end_it_before_anything_is_measured(
    database: Database, migration: Migration, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    fill_and_swap(migration)
    steps: list[str] = []
    settings = make_settings(compare_queries=tmp_path / "none.txt")

    with pytest.raises(ConfigurationError, match=r"none\.txt"):
        benchmark(Migration(database, settings), EmbeddingsService(ENCODER, settings), on_step=steps.append)

    assert steps == []


@pytest.mark.parametrize(
    "step",
    ["search", *(pytest.param(step, marks=pytest.mark.thorough) for step in ("quality", "questions side by side"))],
)
def test_a_rollback_meanwhile_is_named_and_no_mixed_report_is_given(
    step: str, database: Database, migration: Migration, settings: Settings
) -> None:
    fill_and_swap(migration)

    def go_back(measuring: str) -> None:
        if measuring == step:
            rollback(Migration(database, settings))

    with pytest.raises(ChangedMeanwhile):
        benchmark(migration, EmbeddingsService(ENCODER, settings), batch_sizes=(8,), on_step=go_back)
