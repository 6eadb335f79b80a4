"""Expand puts everything beside the old column, may be repeated and interrupted, and is undone by collapse."""

from __future__ import annotations

import logging

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import ConfigurationError, EmbeddingSpaceMismatch, LockNotAcquired, PhaseError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    application,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    scalar,
    schema_of,
)

pytestmark = pytest.mark.pgvector

INDEX = "segments_embedding_idx"


@pytest.fixture
def settings(make_settings):
    """The old index goes, so that the way back has to build it again."""
    return make_settings(old_index="drop")


def index_exists(database, name=INDEX):
    return scalar(database, "SELECT to_regclass(:name) IS NOT NULL", name=name)


def test_the_new_column_stands_beside_the_old_one_with_its_identity(database, migration):
    result = expand(migration, ENCODER.space)
    assert (result.column, result.added, result.dropped_indexes) == ("embedding_384", True, (INDEX,))
    assert columns_of(database)["embedding_384"] == "vector(384)"
    assert columns_of(database)["embedding"] == "vector(1536)"
    state = require_table(migration)
    assert state.phase == "expanded"
    assert space_of(state.new) == ENCODER.space
    assert read_status(migration).pending == 300


def test_a_second_call_changes_nothing(database, migration):
    expand(migration, ENCODER.space)
    before = schema_of(database)
    result = expand(migration, ENCODER.space)
    assert not result.added
    assert schema_of(database) == before
    assert require_table(migration).new.note.dropped_indexes, "the way back is not forgotten"


def test_an_interrupted_expand_is_finished_by_the_next(database, migration):
    pristine = schema_of(database)
    expand(migration, ENCODER.space)
    whole = schema_of(database)
    execute(
        database, f"CREATE INDEX {INDEX} ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = '1')"
    )
    assert schema_of(database) != whole
    expand(migration, ENCODER.space)
    assert schema_of(database) == whole
    collapse(migration)
    assert set(pristine) <= set(schema_of(database))


@pytest.mark.parametrize(("own", "meanwhile"), [(None, 1500), (4000, 1500), (1000, 1000)])
def test_vectors_go_out_of_line_until_collapse_puts_the_table_back(database, migration, own, meanwhile):
    def target():
        options = scalar(database, "SELECT reloptions FROM pg_class WHERE oid = 'segments'::regclass")
        found = [int(option.partition("=")[2]) for option in options or [] if option.startswith("toast_tuple_target=")]
        return found[0] if found else None

    if own is not None:
        execute(database, f"ALTER TABLE segments SET (toast_tuple_target = {own})")
    expand(migration, ENCODER.space)
    assert target() == meanwhile
    expand(migration, ENCODER.space)
    collapse(migration)
    assert target() == own


def test_old_index_keep_leaves_search_as_fast_as_it_was(database, make_settings):
    result = expand(Migration(database, make_settings(old_index="keep")), ENCODER.space)
    assert result.dropped_indexes == ()
    assert index_exists(database)


def test_an_invalid_old_index_goes_and_does_not_come_back(database, migration):
    execute(database, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass")
    expand(migration, ENCODER.space)
    collapse(migration)
    assert not index_exists(database)


@pytest.mark.pgvector("0.7")
def test_collapse_brings_back_the_table_word_for_word(database, migration):
    execute(database, "COMMENT ON COLUMN segments.embedding IS 'mine'")
    execute(database, 'CREATE INDEX "Half: 100%" ON segments USING hnsw ((embedding::halfvec(1536)) halfvec_l2_ops)')
    before = schema_of(database)
    fill(migration)
    assert collapse(migration) == "embedding_384"
    assert schema_of(database) == before, "and leaves nothing behind"


def test_collapse_of_a_table_that_was_not_expanded_does_nothing(database, migration):
    before = schema_of(database)
    assert collapse(migration) is None
    assert schema_of(database) == before


def test_collapse_after_the_swap_is_refused_with_the_way_back(migration):
    fill_and_swap(migration)
    with pytest.raises(PhaseError, match="the one that search reads") as refused:
        collapse(migration)
    assert refused.value.next_step == "bge-pipeline rollback"


def test_a_busy_table_is_given_up_and_left_as_it_was(database, migration):
    before = schema_of(database)
    with application(database) as other:
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1")
        with pytest.raises(LockNotAcquired, match="expand: add the column"):
            expand(migration, ENCODER.space)
    assert schema_of(database) == before


def test_another_space_than_the_one_under_way_is_refused(database, migration):
    expand(migration, ENCODER.space)
    before = schema_of(database)
    with pytest.raises(EmbeddingSpaceMismatch, match="revision"):
        expand(migration, HashingEncoder(seed=1).space)
    assert schema_of(database) == before


def test_dimensions_that_the_model_does_not_make_are_refused(database, migration):
    with pytest.raises(ConfigurationError, match="EMBEDDING_DIMENSIONS is 384, and hashing makes 8"):
        expand(migration, HashingEncoder(8).space)
    assert "embedding_8" not in columns_of(database)


@pytest.mark.parametrize("name", ["embedding_384", "embedding_1536", "embedding_exchange"])
def test_a_column_of_the_user_s_own_is_not_taken_over(database, migration, name):
    execute(database, f"ALTER TABLE segments ADD COLUMN {name} text")
    with pytest.raises(PhaseError, match=f"already has a column '{name}'"):
        expand(migration, ENCODER.space)


def test_what_depends_on_the_old_column_is_named(database, migration, caplog):
    execute(database, "CREATE VIEW nearest AS SELECT embedding FROM segments")
    with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
        result = expand(migration, ENCODER.space)
    assert result.dependents == ("view nearest",)
    assert "view nearest depends on the old column" in caplog.text


def test_the_user_s_own_table_is_not_taken_for_the_quarantine_of_another_column(database, make_settings):
    execute(database, "ALTER TABLE segments ADD COLUMN title_embedding vector(8)")
    body, title = make_settings(), make_settings(target_embedding_column="title_embedding")
    expand(Migration(database, body), ENCODER.space)
    expand(Migration(database, title), ENCODER.space)
    assert index_exists(database, "segments_embedding_quarantine")
    assert index_exists(database, "segments_title_embedding_quarantine")


def test_two_embedding_columns_of_one_table_migrate_without_meeting(database, make_settings):
    execute(database, "ALTER TABLE segments ADD COLUMN title_embedding vector(8)")
    body, title = make_settings(), make_settings(target_embedding_column="title_embedding")
    fill_and_swap(Migration(database, body))
    assert require_table(Migration(database, title)).phase == "legacy"
    expand(Migration(database, title), ENCODER.space)
    assert require_table(Migration(database, body)).phase == "swapped"
    backfill(Migration(database, title), ENCODER)
    execute(database, "UPDATE segments SET text = 'changed' WHERE id = 1")
    assert execute(database, "SELECT embedding, title_embedding_384 FROM segments WHERE id = 1") == [(None, None)]
    collapse(Migration(database, title))
    assert require_table(Migration(database, body)).phase == "swapped"
    backfill(Migration(database, body), ENCODER)
    execute(database, "UPDATE segments SET text = 'changed again' WHERE id = 1")
    assert scalar(database, "SELECT embedding FROM segments WHERE id = 1") is None


def test_a_comment_of_the_user_survives(database, migration):
    execute(database, "COMMENT ON COLUMN segments.embedding IS 'mine'")
    fill_and_swap(migration)
    with database.autocommit() as connection:
        table = describe_table(connection, SEGMENTS)
    assert table.embedding.note.comment == "mine"
