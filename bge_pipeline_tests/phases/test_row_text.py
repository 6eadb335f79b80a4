"""A text that is made of several columns is embedded, watched, searched and remembered as a plain column is."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bge_pipeline.database.pending import count_rows
from bge_pipeline.database.quarantine import list_quarantined
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError, ConfigurationError, EmbeddingSpaceMismatch, TargetTableError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.sql_for_review import expand_script
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import swap
from bge_pipeline.search import Retriever, create_text_index
from bge_pipeline_tests.kinds import kinds
from bge_pipeline_tests.support import (
    ENCODER,
    Wrapped,
    agreed,
    as_it_stands,
    execute,
    fill,
    fill_and_swap,
    parsed,
    scalar,
)
from bge_pipeline_tests.support import swap as swap_quietly

pytestmark = pytest.mark.pgvector

# Names of columns that our own statements use for other things, too.
NOTES = """
CREATE TABLE notes (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, error text, version int, digest varchar(300), payload jsonb,
  whole text GENERATED ALWAYS AS (COALESCE(title, '') || ' / ' || COALESCE(digest, '')) STORED, rank text, vector vector(1536))
"""
FILL = """
INSERT INTO notes (title, error, version, digest, payload, vector)
SELECT NULLIF(speaker_label, '') || ' ' || id, split_part(text, ' ', 2), id, left(text, 300),
       jsonb_build_object('data', text, 'seen', 0), embedding FROM segments
"""
TEXTS = {
    "concatenated": {"target_text": "coalesce(title, '') || E'\\n' || coalesce(digest, '') || ' ' || error || version"},
    "inside JSON": {"target_text": "payload->>'data'"},
    "of a template": {"target_text_template": "$title: $digest"},
    "generated": {"target_text_column": "whole"},
    "made of a generated one": {"target_text": "whole || ' ' || coalesce(error, '')"},
}


@pytest.fixture(params=kinds(TEXTS, "concatenated", "inside JSON", "of a template"))
def notes_settings(request, database, make_settings):
    make_notes(database)
    return make_settings(target_table="notes", target_embedding_column="vector", benchmark_texts=50, **request.param)


def make_notes(database):
    as_it_stands(database, NOTES)
    as_it_stands(database, FILL)
    as_it_stands(database, "ANALYZE notes")


def stale(database, settings, column="vector"):
    """Ids of rows whose vector is not that of their text, as the server makes it; rows without one are left out."""
    target = TargetTable.from_settings(settings)
    with database.autocommit() as connection:
        query = target.sql("SELECT {id}, {text}, {column}::text FROM {table} WHERE {column} IS NOT NULL", column=column)
        rows = connection.execute(query).all()
    made = ENCODER.encode(ENCODER.tokenize([row[1] for row in rows]))
    stored = np.array([parsed(row[2]) for row in rows], np.float32)
    return [row[0] for row, same in zip(rows, np.isclose(stored, made, atol=1e-6).all(axis=1), strict=True) if not same]


def pending(database, column="vector_384"):
    return [row[0] for row in execute(database, f"SELECT id FROM notes WHERE {column} IS NULL ORDER BY 1")]


def test_every_kind_of_text_goes_through_all_phases(database, notes_settings):
    settings = notes_settings
    service = EmbeddingsService(ENCODER, settings)
    planned = plan(Migration(database, settings), service)
    assert planned.obstacles == ()
    assert planned.tokens.sampled_rows == 300
    assert planned.writing is not None

    expand(Migration(database, settings), ENCODER.space)
    assert backfill(Migration(database, settings), ENCODER).rows == 300
    assert stale(database, settings, "vector_384") == []
    assert read_status(Migration(database, settings)).warnings == ()
    assert swap(Migration(database, settings), service).gate.passed

    create_text_index(database, settings)
    retriever = Retriever(database, settings, service)
    ((words,),) = as_it_stands(database, "SELECT digest FROM notes WHERE id = 17")
    for mode in ("dense", "lexical", "hybrid"):
        assert 17 in [hit.id for hit in retriever.search(words, mode=mode, top_k=10).results]
    phrase = " ".join(re.findall(r"[a-z]+ [a-z]+", words)[:1])
    assert 17 in [hit.id for hit in retriever.search(f'{words} "{phrase}"', mode="hybrid", top_k=20).results]

    execute(
        database,
        "UPDATE notes SET title = 'oryx', digest = 'zebra', payload = '{\"data\": \"oryx zebra\"}' WHERE id = 5",
    )
    assert pending(database, "vector") == [5]
    assert pending(database, "vector_1536") == [5]
    embed_pending(Migration(database, settings))
    assert stale(database, settings) == []
    assert retriever.search("oryx zebra").results[0].id == 5

    rollback(Migration(database, settings))
    swap(Migration(database, agreed(Migration(database, settings))), service)
    retire(Migration(database, settings))
    assert stale(database, settings) == []
    assert read_status(Migration(database, settings)).warnings == ()


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("inside JSON", "payload = payload || '{\"seen\": 1}'", 'payload = payload || \'{"data": "else"}\''),
        ("generated", "error = 'x', payload = '{}'", "title = 'else'"),
        ("made of a generated one", "payload = '{}', version = 3", "digest = 'else'"),
        ("of a template", "title = title, error = 'x'", "title = NULL"),
        ("concatenated", "title = title || '', payload = NULL", "error = 'else'"),
    ],
)
def test_only_a_change_that_the_text_shows_empties_the_vector(database, make_settings, kind, same, other):
    make_notes(database)
    settings = make_settings(target_table="notes", target_embedding_column="vector", **TEXTS[kind])
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), ENCODER)
    as_it_stands(database, f"UPDATE notes SET {same} WHERE id < 4")
    assert pending(database) == []
    as_it_stands(database, f"UPDATE notes SET {other} WHERE id < 4")
    assert pending(database) == [1, 2, 3]


def test_an_expression_that_fails_for_a_row_stops_no_statement_of_the_application(database, make_settings):
    make_notes(database)
    settings = make_settings(
        target_table="notes", target_embedding_column="vector", target_text="title || 1000 / version"
    )
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), ENCODER)
    assert "pending" in str(execute(database, "SELECT indexdef FROM pg_indexes WHERE tablename = 'notes'"))
    as_it_stands(database, "UPDATE notes SET version = 0 WHERE id = 1")
    assert pending(database) == [1]
    as_it_stands(database, "INSERT INTO notes (title, version) VALUES ('new', 0)")
    assert pending(database) == [1, 301]


def test_a_text_that_cannot_be_embedded_is_put_aside_and_comes_back_when_any_part_of_it_changes(
    database, make_settings
):
    make_notes(database)
    settings = make_settings(target_table="notes", target_embedding_column="vector", **TEXTS["concatenated"])
    target = TargetTable.from_settings(settings)

    def refuse(texts):
        if any("unreadable" in text for text in texts):
            raise ValueError("cannot read this")

    execute(database, "UPDATE notes SET error = 'unreadable' WHERE id = 7")
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), Wrapped(before=refuse))
    with database.autocommit() as connection:
        assert [row.row_id for row in list_quarantined(connection, target)] == ["7"]
        assert count_rows(connection, target, "vector_384").quarantined == 1
    execute(database, "UPDATE notes SET error = 'readable' WHERE id = 7")
    assert backfill(Migration(database, settings), ENCODER).rows == 1
    assert stale(database, settings, "vector_384") == []


def test_a_row_whose_text_is_edited_while_it_is_embedded_gets_no_vector_of_the_text_before(database, make_settings):
    make_notes(database)
    settings = make_settings(target_table="notes", target_embedding_column="vector", **TEXTS["of a template"])
    expand(Migration(database, settings), ENCODER.space)
    edited = []

    def edit(_):
        if not edited:
            edited.append(1)
            execute(database, "UPDATE notes SET digest = 'edited meanwhile' WHERE id = 9")
            execute(database, "UPDATE notes SET version = version + 1 WHERE id = 10")

    backfill(Migration(database, settings), Wrapped(before=edit))
    assert edited
    assert stale(database, settings, "vector_384") == []
    backfill(Migration(database, settings), ENCODER)
    assert pending(database) == []


def test_another_text_for_a_column_that_is_being_filled_is_refused_everywhere(database, make_settings):
    make_notes(database)
    names = {"target_table": "notes", "target_embedding_column": "vector"}
    settings = make_settings(**names, **TEXTS["inside JSON"])
    other = make_settings(**names, **TEXTS["concatenated"])
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), ENCODER)
    service = EmbeddingsService(ENCODER, other)
    for act in (
        lambda: expand(Migration(database, other), ENCODER.space),
        lambda: backfill(Migration(database, other), ENCODER),
        lambda: swap(Migration(database, other), service),
    ):
        with pytest.raises(EmbeddingSpaceMismatch, match="payload"):
            act()
    swap(Migration(database, settings), EmbeddingsService(ENCODER, settings))
    (warning,) = read_status(Migration(database, other)).warnings
    assert "are those of payload->>'data', and the settings name coalesce(title" in warning
    with pytest.raises(BgePipelineError, match="payload"):
        embed_pending(Migration(database, make_settings(**names, target_text_column="digest")))


def test_the_next_migration_keeps_both_models_vectors_current_with_the_same_text(database, make_settings):
    make_notes(database)
    names = {"target_table": "notes", "target_embedding_column": "vector", **TEXTS["of a template"]}
    settings = make_settings(**names)
    fill_and_swap(Migration(database, settings))
    retire(Migration(database, settings))
    small = HashingEncoder(dimensions=64)
    following = make_settings(**names, embedding_dimensions=64)
    fill(Migration(database, following), small)
    execute(database, "UPDATE notes SET title = 'oryx' WHERE id = 5")
    execute(database, "UPDATE notes SET version = 0 WHERE id = 6")
    assert (pending(database, "vector"), pending(database, "vector_64")) == ([5], [5])
    backfill(Migration(database, following), small)
    assert (pending(database, "vector"), pending(database, "vector_64")) == ([], [])
    assert stale(database, settings, "vector") == []
    assert read_status(Migration(database, following)).warnings == ()
    assert swap_quietly(Migration(database, following), small).exchanged
    rollback(Migration(database, following))
    assert stale(database, settings, "vector") == []
    swap_quietly(Migration(database, following), small)
    retire(Migration(database, following))
    assert read_status(Migration(database, following)).warnings == ()


def test_a_text_that_fails_for_a_row_is_explained_by_every_command_that_reads_it(database, make_settings):
    make_notes(database)
    settings = make_settings(
        target_table="notes", target_embedding_column="vector", target_text="title || 1000 / version"
    )
    expand(Migration(database, settings), ENCODER.space)
    execute(database, "UPDATE notes SET version = 0 WHERE id = 200")
    for act in (
        lambda: plan(Migration(database, settings), EmbeddingsService(ENCODER, settings)),
        lambda: backfill(Migration(database, settings), ENCODER),
        lambda: read_status(Migration(database, settings)),
        lambda: embed_pending(Migration(database, settings)),
    ):
        with pytest.raises(TargetTableError, match=r"TARGET_TEXT title .* division by zero") as refused:
            act()
        assert "CASE WHEN" in refused.value.next_step
    execute(database, "UPDATE notes SET version = 1 WHERE id = 200")
    backfill(Migration(database, settings), ENCODER)
    assert pending(database) == []


def test_a_text_that_no_index_can_hold_is_an_obstacle_and_expand_refuses_before_it_changes_anything(
    database, make_settings
):
    settings = make_settings(target_text="concat_ws(' ', speaker_label, text)")
    (obstacle,) = plan(Migration(database, settings), EmbeddingsService(ENCODER, settings)).obstacles
    assert "IMMUTABLE" in obstacle
    with pytest.raises(TargetTableError, match="IMMUTABLE"):
        expand(Migration(database, settings), ENCODER.space)
    assert require_table(Migration(database, settings)).phase == "legacy"
    assert (
        scalar(database, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'segments'::regclass AND NOT tgisinternal")
        == 0
    )


def test_settings_take_one_text_and_a_script_without_a_database_takes_a_column(make_settings):
    with pytest.raises(ConfigurationError, match="expected one of TARGET_TEXT_COLUMN"):
        make_settings(target_text="title", target_text_template="$title")
    with pytest.raises(ConfigurationError, match=r"TARGET_TEXT_TEMPLATE: expected at least one column"):
        make_settings(target_text_template="title")
    settings = make_settings(target_text="text || ''")
    with pytest.raises(ConfigurationError, match="without --sql") as refused:
        expand_script(TargetTable.from_settings(settings), settings, ENCODER.space)
    assert refused.value.next_step == "run it without --sql"
