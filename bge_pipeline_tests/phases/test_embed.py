"""Embedding what is pending, every minute if need be: cheap where nothing is, and never another model."""

from __future__ import annotations

import pytest

from bge_pipeline.errors import EmbeddingSpaceMismatch, PhaseError
from bge_pipeline.phases import embed as embed_module
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline_tests.support import ENCODER, execute, fill_and_swap, pending_ids, wrong_vectors

pytestmark = pytest.mark.pgvector


@pytest.fixture
def without_model(monkeypatch):
    """Fails a test that loads the model."""

    def refuse(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(embed_module, "open_service", refuse)


def test_new_and_changed_rows_get_their_vectors(database, migration):
    fill_and_swap(migration)
    execute(database, "UPDATE segments SET text = 'changed' WHERE id <= 3")
    result = embed_pending(migration).as_metadata()
    assert (result["rows"], result["pending_after"], result["column"]) == (3, 0, "embedding")
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert require_table(migration).phase == "swapped"


@pytest.mark.usefixtures("without_model")
def test_where_nothing_is_pending_no_model_is_loaded(migration):
    fill_and_swap(migration)
    result = embed_pending(migration)
    assert result.backfill is None
    assert result.as_metadata()["rows"] == 0


@pytest.mark.usefixtures("without_model")
def test_another_model_is_refused_before_it_is_loaded_and_the_quarantine_stays(database, migration, make_settings):
    fill_and_swap(migration)
    execute(database, "INSERT INTO segments_embedding_quarantine VALUES (5, 'too hard', now())")
    execute(database, "UPDATE segments SET embedding = NULL WHERE id IN (4, 5)")
    with pytest.raises(EmbeddingSpaceMismatch, match="256"):
        embed_pending(Migration(database, make_settings(embedding_dimensions=256)), retry_quarantined=True)
    assert pending_ids(database, "embedding") == [4, 5]
    assert execute(database, "SELECT row_id::int FROM segments_embedding_quarantine") == [(5,)]


@pytest.mark.usefixtures("without_model")
def test_no_migration_is_begun(migration):
    with pytest.raises(PhaseError, match="no column to fill yet"):
        embed_pending(migration)
    assert require_table(migration).phase == "legacy"
