"""Rollback exchanges the columns back, with their index, and a later swap goes forward again."""

from __future__ import annotations

import logging

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.notes import comment_statement
from bge_pipeline.errors import DatabaseUnavailable, LockNotAcquired, PhaseError
from bge_pipeline.phases import rollback as rollback_module
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse, restore_indexes
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    application,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    scalar,
    schema_of,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

INDEX = "segments_embedding_idx"
KEPT_INDEX = f"{INDEX}_of_embedding_1536"
"""The old index after a swap, whose name the new one bears."""


def index_definition(database, name=INDEX):
    return scalar(database, "SELECT pg_get_indexdef(to_regclass(:name))", name=name)


@pytest.fixture
def settings(make_settings):
    """The old index goes, so that the way back has to build it again."""
    return make_settings(old_index="drop")


def test_search_reads_the_old_vectors_again_with_their_index(database, migration):
    old = execute(database, "SELECT id, embedding::text FROM segments ORDER BY id")
    definition = index_definition(database)
    fill_and_swap(migration)
    assert index_definition(database, KEPT_INDEX) is None
    result = rollback(migration)
    assert (result.kept_column, result.restored_indexes) == ("embedding_384", (INDEX,))
    assert (result.rows_without_old_vector, result.notices) == (0, ())
    assert execute(database, "SELECT id, embedding::text FROM segments ORDER BY id") == old
    assert index_definition(database) == definition
    assert require_table(migration).phase == "backfilled"
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


@pytest.mark.parametrize(
    "definition",
    [
        'CREATE INDEX "Odd ""name"" 100%: {x}" ON segments USING hnsw (embedding vector_l2_ops) WITH (m = 8)',
        pytest.param(
            "CREATE INDEX odd ON segments USING hnsw ((embedding::halfvec(1536)) halfvec_cosine_ops)",
            marks=pytest.mark.pgvector("0.7"),
        ),
        "CREATE INDEX odd ON segments USING ivfflat (embedding vector_ip_ops) WITH (lists = 3) WHERE id > 10",
        pytest.param(
            "CREATE INDEX odd ON segments USING hnsw ((binary_quantize(embedding)::bit(1536)) bit_hamming_ops)",
            marks=pytest.mark.pgvector("0.7"),
        ),
    ],
)
def test_every_kind_of_old_index_comes_back_as_it_was(database, migration, definition):
    with database.autocommit() as connection:
        connection.connection.dbapi_connection.cursor().execute(definition)
    before = [row for row in schema_of(database) if row[0].startswith("CREATE INDEX")]
    fill_and_swap(migration)
    rollback(migration)
    assert set(before) <= set(schema_of(database))


def test_an_index_that_needs_more_memory_than_the_server_gives_comes_back(database, migration):
    execute(database, f"DROP INDEX {INDEX}")
    with database.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '500MB'")
        connection.exec_driver_sql(
            f"CREATE INDEX {INDEX} ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 250)"
        )
    fill_and_swap(migration)
    assert rollback(migration).restored_indexes == (INDEX,)


def test_swapping_again_needs_no_new_vectors(database, migration):
    fill_and_swap(migration)
    rollback(migration)
    result = swap(migration)
    assert (result.exchanged, result.index_built) == (True, False)
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_there_and_back_many_times_leaves_nothing_behind(database, make_settings):
    settings = make_settings(old_index="keep")
    fill_and_swap(Migration(database, settings))
    swapped = schema_of(database)
    first = rollback(Migration(database, settings)).rolled_back
    back = schema_of(database)
    swap(Migration(database, settings))
    assert schema_of(database) == swapped
    second = rollback(Migration(database, settings)).rolled_back
    assert str(schema_of(database)).replace(second, first) == str(back)


def test_rows_that_came_or_changed_since_are_counted_and_have_no_wrong_vector(database, migration):
    fill_and_swap(migration)
    execute(database, "UPDATE segments SET text = 'changed' WHERE id <= 3")
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
        "SELECT source_id, 'new', 1, 2, 'new' FROM segments LIMIT 1",
    )
    backfill(migration, ENCODER)
    result = rollback(migration)
    assert result.rows_without_old_vector == 4
    assert "4 rows" in result.notices[0]
    assert len(pending_ids(database, "embedding")) == 4
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_texts_that_change_after_the_way_back_are_followed_in_the_new_column_only(database, migration):
    fill_and_swap(migration)
    rollback(migration)
    execute(database, "UPDATE segments SET text = 'changed' WHERE id = 1")
    assert pending_ids(database) == [1]
    assert pending_ids(database, "embedding") == []


def test_a_column_that_was_not_null_is_mentioned_with_a_statement_that_works(database, migration):
    execute(database, "ALTER TABLE segments ALTER COLUMN embedding SET NOT NULL")
    fill_and_swap(migration)
    (notice,) = rollback(migration).notices
    execute(database, notice.rpartition(": ")[2])
    assert scalar(
        database,
        "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'segments'::regclass AND attname = 'embedding'",
    )


@pytest.mark.parametrize("comment", [None, "the application's own words"])
def test_the_comment_of_a_column_without_recorded_space_comes_back(database, migration, comment):
    with database.transaction() as connection:
        connection.execute(comment_statement(SEGMENTS, "embedding", comment))
    fill_and_swap(migration)
    rollback(migration)
    with database.autocommit() as connection:
        assert describe_table(connection, SEGMENTS).embedding.comment == comment
    collapse(migration)
    assert require_table(migration).phase == "legacy"


def test_a_busy_table_is_given_up_with_the_index_already_there_and_a_second_call_goes_on(
    database, migration, monkeypatch
):
    fill_and_swap(migration)
    with application(database) as other:

        def restore_and_occupy(*arguments, **told):
            names = restore_indexes(*arguments, **told)
            other.exec_driver_sql("SELECT * FROM segments LIMIT 1")
            return names

        monkeypatch.setattr(rollback_module, "restore_indexes", restore_and_occupy)
        with pytest.raises(LockNotAcquired, match="rollback: exchange"):
            rollback(migration)
        monkeypatch.undo()
    assert require_table(migration).phase == "swapped"
    assert "(embedding_1536 vector_cosine_ops)" in index_definition(database, KEPT_INDEX)
    rollback(migration)
    assert "(embedding vector_cosine_ops)" in index_definition(database)


@pytest.mark.parametrize("wanting", ["count_lacking_within", "record"])
def test_what_fails_behind_the_exchange_is_logged_and_fails_nothing(database, migration, monkeypatch, caplog, wanting):
    fill_and_swap(migration)

    def away(*_, **__):
        raise DatabaseUnavailable("the server closed the connection")

    monkeypatch.setattr(rollback_module, wanting, away)
    with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
        result = rollback(migration)
    assert (result.rows_without_old_vector is None) == (wanting == "count_lacking_within")
    assert require_table(migration).phase == "backfilled"
    assert "are exchanged, and" in caplog.text
    assert "the server closed the connection" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "hint"),
    [
        (lambda *_: None, None),
        (fill, None),
        (lambda migration: (fill_and_swap(migration), retire(migration)), "migrate to the old model"),
    ],
    ids=["legacy", "backfilled", "retired"],
)
def test_without_an_old_column_there_is_no_way_back(database, settings, prepare, hint):
    prepare(Migration(database, settings))
    before = columns_of(database)
    with pytest.raises(PhaseError, match="no old column to go back to") as refused:
        rollback(Migration(database, settings))
    assert hint is None or hint in refused.value.next_step
    assert columns_of(database) == before
