"""A swap takes a verdict that is minutes old and about the same vectors, and measures where there is none."""

from __future__ import annotations

import pytest

from bge_pipeline.database.journal import record
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases import verdict
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.swap import swap
from bge_pipeline.quality import recall_queries
from bge_pipeline.quality.bounds import GateBounds
from bge_pipeline.quality.measure import RECALL_QUERIES
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute, fill

pytestmark = pytest.mark.pgvector


@pytest.fixture
def measured(monkeypatch):
    """Counts how often the whole gate is measured."""
    counted = []
    measure = verdict.measure_quality

    def counting(*arguments):
        counted.append(1)
        return measure(*arguments)

    monkeypatch.setattr(verdict, "measure_quality", counting)
    return counted


@pytest.fixture
def service(settings):
    return EmbeddingsService(ENCODER, settings)


@pytest.fixture
def judged(migration, service, measured):
    """A filled column with a verdict in the journal."""
    fill(migration)
    assert verdict.judge_for_swap(migration, service).gate.passed
    assert len(measured) == 1


@pytest.mark.usefixtures("judged")
class TestAVerdictInTheJournal:
    def test_is_taken_and_the_index_is_measured(self, migration, service, measured):
        result = swap(migration, service)
        assert len(measured) == 1
        assert result.exchanged
        values = {check.name: check.value for check in result.gate.checks}
        assert values["stored_vectors_matching"] == 1.0
        assert 0.9 < values["ann_recall"] <= 1.0

    def test_is_judged_by_the_bounds_of_now(self, migration, service, measured, monkeypatch):
        monkeypatch.setattr(verdict, "bounds_of", lambda *_: GateBounds(known_item_success=1.01))
        with pytest.raises(SwapRefused, match="known_item_success"):
            swap(migration, service)
        assert len(measured) == 1

    def test_is_too_old_after_a_while(self, migration, service, measured, monkeypatch):
        monkeypatch.setattr(verdict, "FRESH_SECONDS", 0)
        swap(migration, service)
        assert len(measured) == 2

    def test_is_void_when_many_rows_were_written_since(self, database, migration, service, measured):
        record(database, SEGMENTS, "backfill", {"rows": 30})
        swap(migration, service)
        assert len(measured) == 2

    def test_holds_when_the_application_wrote_a_few(self, database, migration, service, measured):
        record(database, SEGMENTS, "backfill", {"rows": 2})
        swap(migration, service)
        assert len(measured) == 1

    def test_is_void_when_it_was_asked_in_another_way(self, database, make_settings, service, measured):
        swap(Migration(database, make_settings(quality_sample_rows=250)), service)
        assert len(measured) == 2


def test_a_refusal_is_never_taken_but_measured_again(database, migration, service, measured):
    fill(migration)
    execute(database, "UPDATE segments SET embedding_384 = embedding_384 + embedding_384")
    assert not verdict.judge_for_swap(migration, service).gate.passed
    execute(database, "UPDATE segments SET embedding_384 = l2_normalize(embedding_384)")
    assert swap(migration, service).exchanged
    assert len(measured) == 2


@pytest.mark.parametrize("verdict_is_there", [False, True])
def test_the_swap_reads_the_new_column_once_for_search_effort_and_gate(
    migration, service, monkeypatch, verdict_is_there
):
    fill(migration)
    if verdict_is_there:
        verdict.judge_for_swap(migration, service)
    reads = []
    nearest_rows = recall_queries.nearest_rows

    def counting(connection, searched, queries, *arguments, **named):
        reads.append((searched.column.name, len(queries)))
        return nearest_rows(connection, searched, queries, *arguments, **named)

    monkeypatch.setattr(recall_queries, "nearest_rows", counting)
    result = swap(migration, service)

    assert reads == [("embedding_384", 2 * RECALL_QUERIES)]
    (recall,) = [check for check in result.gate.checks if check.name == "ann_recall"]
    assert recall.passed
    assert 0.9 < recall.value <= 1.0


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_a_table_of_hardly_a_row_is_swapped(database, migration, service, rows):
    execute(database, f"DELETE FROM segments WHERE id > {rows}")
    fill(migration)
    assert swap(migration, service).exchanged
