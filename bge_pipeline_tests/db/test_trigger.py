"""A text that changes loses its vector in the same statement; an application's own new vector stays."""

from __future__ import annotations

import pytest

from bge_pipeline.database.quarantine import list_quarantined
from bge_pipeline_tests.support import SEGMENTS, application, execute, fill, fill_and_swap, require_icu, scalar

pytestmark = pytest.mark.pgvector

OWN = str([1.0] + [0.0] * 383)


def has_vector(database, row_id, column="embedding_384"):
    return scalar(database, f"SELECT {column} IS NOT NULL FROM segments WHERE id = {row_id}")


def test_a_changed_text_makes_a_row_pending_before_the_swap(database, settings):
    fill(database, settings)
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    assert not has_vector(database, 1)
    assert has_vector(database, 1, "embedding"), "the application still looks after the old vectors"
    assert has_vector(database, 2)


def test_a_changed_text_makes_a_row_pending_after_the_swap_and_spoils_the_old_vector(database, settings):
    fill_and_swap(database, settings)
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    assert not has_vector(database, 1, "embedding")
    assert not has_vector(database, 1, "embedding_1536"), "a rollback must not bring back the vector of another text"


def test_other_changes_leave_the_vector_alone(database, settings):
    fill(database, settings)
    execute(database, "UPDATE segments SET text = text, speaker_label = 'x', metadata = '{}' WHERE id = 1")
    assert has_vector(database, 1)


def test_a_vector_written_together_with_the_text_stays(database, settings):
    fill_and_swap(database, settings)
    execute(database, f"UPDATE segments SET text = 'another text', embedding = '{OWN}' WHERE id = 1")
    assert scalar(database, "SELECT embedding::text FROM segments WHERE id = 1").startswith("[1,0,0")
    assert not has_vector(database, 1, "embedding_1536")


def test_a_new_row_is_pending(database, settings):
    fill(database, settings)
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) SELECT source_id, 'new', 1, 2, 'x' "
        "FROM segments LIMIT 1",
    )
    assert scalar(database, "SELECT embedding_384 FROM segments WHERE video_id = 'new'") is None


def test_an_upsert_that_changes_the_text_is_an_update(database, settings):
    fill(database, settings)
    execute(
        database,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text) "
        "SELECT id, source_id, video_id, start_sec, end_sec, 'upserted' FROM segments WHERE id = 1 "
        "ON CONFLICT (id) DO UPDATE SET text = EXCLUDED.text",
    )
    assert not has_vector(database, 1)


def test_a_text_that_another_trigger_changes_counts_as_changed(database, settings):
    fill(database, settings)
    execute(
        database,
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.text = upper(NEW.text); RETURN NEW; END $$",
    )
    execute(database, "CREATE TRIGGER shouts BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION shout()")
    execute(database, "UPDATE segments SET speaker_label = 'x' WHERE id = 1")
    assert not has_vector(database, 1)


def test_a_text_emptied_and_set_again_is_followed(database, settings):
    execute(database, "ALTER TABLE segments ALTER COLUMN text DROP NOT NULL")
    fill(database, settings)
    execute(database, "UPDATE segments SET text = NULL WHERE id = 1")
    assert not has_vector(database, 1)
    execute(database, f"UPDATE segments SET embedding_384 = '{OWN}' WHERE id = 1")
    execute(database, "UPDATE segments SET text = 'back' WHERE id = 1")
    assert not has_vector(database, 1)


def test_spellings_that_the_collation_calls_equal_are_different_texts(database, settings):
    require_icu(database)
    execute(database, "ALTER TABLE segments ALTER COLUMN text TYPE text COLLATE loose")
    fill(database, settings)
    execute(database, "UPDATE segments SET text = upper(text) WHERE id = 1")
    assert not has_vector(database, 1)


def test_rows_brought_by_replication_are_followed_too(database, settings):
    fill(database, settings)
    with database.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("UPDATE segments SET text = 'replicated' WHERE id = 1")
    assert not has_vector(database, 1)


def test_an_application_without_rights_on_the_quarantine_can_change_texts(database, settings):
    fill(database, settings)
    with application(database) as other:
        other.exec_driver_sql("CREATE ROLE app_role_of_trigger_test")
        other.exec_driver_sql("GRANT SELECT, UPDATE ON segments TO app_role_of_trigger_test")
        other.exec_driver_sql("SET ROLE app_role_of_trigger_test")
        other.exec_driver_sql("UPDATE segments SET text = 'theirs' WHERE id = 1")
        assert other.exec_driver_sql("SELECT embedding_384 FROM segments WHERE id = 1").scalar_one() is None


def test_a_changed_text_leaves_quarantine(database, settings):
    fill(database, settings)
    execute(database, "INSERT INTO segments_embedding_quarantine VALUES (1, 'bad', now()), (2, 'bad', now())")
    execute(database, "UPDATE segments SET text = 'better' WHERE id = 1")
    with database.autocommit() as connection:
        assert [row.row_id for row in list_quarantined(connection, SEGMENTS)] == ["2"]
