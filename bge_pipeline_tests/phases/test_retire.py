"""Retire drops the old column, once nothing reads it, and a second migration can begin."""

from __future__ import annotations

import pytest

from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import LockNotAcquired, PhaseError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import (
    ENCODER,
    application,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    put_in_quarantine,
    scalar,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

OTHER = HashingEncoder(seed=7)


class TestRetire:
    def test_the_old_column_goes_and_texts_are_still_followed(self, database, migration):
        fill_and_swap(migration)
        assert retire(migration).dropped_column == "embedding_1536"
        assert "embedding_1536" not in columns_of(database)
        assert read_status(migration).phase == "retired"
        execute(database, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert pending_ids(database, "embedding") == [1]
        assert backfill(migration, ENCODER).rows == 1

    def test_a_second_call_drops_nothing(self, migration):
        fill_and_swap(migration)
        retire(migration)
        assert retire(migration).dropped_column is None

    def test_space_is_given_back_when_asked_for(self, migration):
        fill_and_swap(migration)
        result = retire(migration, reclaim=True)
        assert result.rewritten
        assert result.table_bytes_after < result.table_bytes_before / 2

    @pytest.mark.parametrize("prepare", [lambda *_: None, fill], ids=["legacy", "backfilled"])
    def test_before_the_swap_it_is_refused(self, database, migration, prepare):
        prepare(migration)
        before = columns_of(database)
        with pytest.raises(PhaseError, match="search still reads the old column"):
            retire(migration)
        assert columns_of(database) == before

    def test_what_still_reads_the_old_vectors_is_named(self, database, make_settings):
        execute(database, "CREATE VIEW nearest AS SELECT embedding FROM segments")
        settings = make_settings(dependents="ignore")
        fill_and_swap(Migration(database, settings))
        with pytest.raises(PhaseError, match="view nearest") as refused:
            retire(Migration(database, settings))
        assert refused.value.state == "nothing was dropped"
        execute(database, "DROP VIEW nearest")
        assert retire(Migration(database, settings)).dropped_column == "embedding_1536"

    @pytest.mark.parametrize("reclaim", [False, True])
    def test_a_busy_table_is_given_up(self, database, migration, reclaim):
        fill_and_swap(migration)
        with application(database) as other:
            other.exec_driver_sql("SELECT * FROM segments LIMIT 1")
            with pytest.raises(LockNotAcquired, match="retire:"):
                retire(migration, reclaim=reclaim)


class TestASecondMigration:
    @pytest.fixture
    def retired(self, database, migration):
        fill_and_swap(migration)
        retire(migration)
        return database

    def test_goes_through_all_phases_at_equal_dimensions(self, retired, settings):
        fill(Migration(retired, settings), OTHER)
        assert swap(Migration(retired, settings), OTHER).previous_column == "embedding_384"
        assert wrong_vectors(retired, OTHER, "embedding") == []
        assert wrong_vectors(retired, ENCODER, "embedding_384") == []
        rollback(Migration(retired, settings))
        assert wrong_vectors(retired, ENCODER, "embedding") == []
        assert wrong_vectors(retired, OTHER, "embedding_384") == []
        swap(Migration(retired, settings), OTHER)
        retire(Migration(retired, settings))
        assert space_of(require_table(Migration(retired, settings)).table.embedding) == OTHER.space
        assert wrong_vectors(retired, OTHER, "embedding") == []

    def test_cannot_begin_before_the_first_is_retired(self, migration):
        fill_and_swap(migration)
        with pytest.raises(PhaseError, match="still keeps 'embedding_1536'") as refused:
            expand(migration, OTHER.space)
        assert "bge-pipeline retire" in refused.value.next_step

    def test_empties_both_vectors_of_a_text_that_changes_meanwhile(self, retired, settings):
        fill(Migration(retired, settings), OTHER)
        execute(retired, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert execute(retired, "SELECT embedding, embedding_384 FROM segments WHERE id = 1") == [(None, None)]

    @pytest.mark.parametrize("after_the_swap", [False, True])
    def test_that_is_given_up_leaves_the_first_as_it_was(self, retired, settings, after_the_swap):
        fill(Migration(retired, settings), OTHER)
        if after_the_swap:
            swap(Migration(retired, settings), OTHER)
            rollback(Migration(retired, settings))
        collapse(Migration(retired, settings))
        status = read_status(Migration(retired, settings))
        assert (status.phase, status.pending, status.model) == ("retired", 0, "hashing")
        assert status.index is not None
        assert wrong_vectors(retired, ENCODER, "embedding") == []
        execute(retired, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert backfill(Migration(retired, settings), ENCODER).rows == 1
        assert wrong_vectors(retired, ENCODER, "embedding") == []

    def test_tries_rows_again_that_the_first_model_could_not_embed(self, retired, settings):
        put_in_quarantine(retired, 5)
        execute(retired, "UPDATE segments SET embedding = NULL WHERE id = 5")
        assert fill(Migration(retired, settings), OTHER).rows == 300
        assert scalar(retired, "SELECT count(*) FROM segments_embedding_quarantine") == 0

    def test_back_to_the_first_dimensions(self, retired, make_settings):
        old = HashingEncoder(1536, seed=3)
        settings = make_settings(embedding_dimensions=1536)
        fill_and_swap(Migration(retired, settings), old)
        assert columns_of(retired)["embedding"] == "vector(1536)"
        assert wrong_vectors(retired, old, "embedding") == []
