"""A text that changes loses its vector in the same statement; an application's own new vector stays."""

from __future__ import annotations

import numpy as np
import pytest

from bge_pipeline.database.quarantine import list_quarantined
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    Wrapped,
    application,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    put_in_quarantine,
    require_icu,
    scalar,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

OWN = str([1.0] + [0.0] * 383)
EDITS = "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.text = upper(NEW.text); RETURN NEW; END $$"


def has_vector(database, row_id, column="embedding_384"):
    return scalar(database, f"SELECT {column} IS NOT NULL FROM segments WHERE id = {row_id}")


def test_a_changed_text_makes_a_row_pending_before_the_swap(database, migration):
    fill(migration)
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    assert not has_vector(database, 1)
    assert has_vector(database, 1, "embedding"), "the application still looks after the old vectors"
    assert has_vector(database, 2)


def test_a_changed_text_makes_a_row_pending_after_the_swap_and_spoils_the_old_vector(database, migration):
    fill_and_swap(migration)
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    assert not has_vector(database, 1, "embedding")
    assert not has_vector(database, 1, "embedding_1536"), "a rollback must not bring back the vector of another text"


def test_other_changes_leave_the_vector_alone(database, migration):
    fill(migration)
    execute(database, "UPDATE segments SET text = text, speaker_label = 'x', metadata = '{}' WHERE id = 1")
    assert has_vector(database, 1)


def test_a_vector_written_together_with_the_text_stays(database, migration):
    fill_and_swap(migration)
    execute(database, f"UPDATE segments SET text = 'another text', embedding = '{OWN}' WHERE id = 1")
    assert scalar(database, "SELECT embedding::text FROM segments WHERE id = 1").startswith("[1,0,0")
    assert not has_vector(database, 1, "embedding_1536")


def test_a_new_row_is_pending(database, migration):
    fill(migration)
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) SELECT source_id, 'new', 1, 2, 'x' "
        "FROM segments LIMIT 1",
    )
    assert scalar(database, "SELECT embedding_384 FROM segments WHERE video_id = 'new'") is None


def test_an_upsert_that_changes_the_text_is_an_update(database, migration):
    fill(migration)
    execute(
        database,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text) "
        "SELECT id, source_id, video_id, start_sec, end_sec, 'upserted' FROM segments WHERE id = 1 "
        "ON CONFLICT (id) DO UPDATE SET text = EXCLUDED.text",
    )
    assert not has_vector(database, 1)


@pytest.mark.parametrize("name", ["shouts", "zzz_shouts", "}shouts"])
def test_a_text_that_another_trigger_changes_counts_as_changed_whatever_its_name(database, migration, name):
    fill(migration)
    execute(database, EDITS)
    execute(database, f'CREATE TRIGGER "{name}" BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION shout()')
    execute(database, "UPDATE segments SET speaker_label = 'x' WHERE id = 1")
    assert not has_vector(database, 1)


def test_a_text_emptied_and_set_again_is_followed(database, migration):
    execute(database, "ALTER TABLE segments ALTER COLUMN text DROP NOT NULL")
    fill(migration)
    execute(database, "UPDATE segments SET text = NULL WHERE id = 1")
    assert not has_vector(database, 1)
    execute(database, f"UPDATE segments SET embedding_384 = '{OWN}' WHERE id = 1")
    execute(database, "UPDATE segments SET text = 'back' WHERE id = 1")
    assert not has_vector(database, 1)


def test_spellings_that_the_collation_calls_equal_are_different_texts(database, migration):
    require_icu(database)
    execute(database, "ALTER TABLE segments ALTER COLUMN text TYPE text COLLATE loose")
    fill(migration)
    execute(database, "UPDATE segments SET text = upper(text) WHERE id = 1")
    assert not has_vector(database, 1)


def test_rows_brought_by_replication_are_followed_too(database, migration):
    fill(migration)
    with database.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("UPDATE segments SET text = 'replicated' WHERE id = 1")
    assert not has_vector(database, 1)


def test_an_application_that_may_only_change_texts_needs_no_right_on_anything_of_ours(database, migration):
    fill(migration)
    with application(database) as other:
        other.exec_driver_sql("CREATE ROLE narrow_role_of_trigger_test")
        other.exec_driver_sql("GRANT SELECT (id, text), UPDATE (text) ON segments TO narrow_role_of_trigger_test")
        other.exec_driver_sql("REVOKE ALL ON FUNCTION zz_segments_embedding_stale FROM PUBLIC")
        other.exec_driver_sql("SET ROLE narrow_role_of_trigger_test")
        other.exec_driver_sql("UPDATE segments SET text = 'theirs' WHERE id = 1")
        other.exec_driver_sql("RESET ROLE")
        assert other.exec_driver_sql("SELECT embedding_384 FROM segments WHERE id = 1").scalar_one() is None


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE segments_embedding_quarantine, segments_embedding_journal",
        "ALTER TABLE segments DROP COLUMN embedding CASCADE",
        "ALTER TABLE segments DROP COLUMN embedding_1536",
        "ALTER TABLE segments RENAME COLUMN embedding TO vectors",
        "ALTER TABLE segments RENAME TO passages",
        "ALTER TABLE segments RENAME COLUMN id TO number",
        pytest.param(
            "DROP INDEX segments_embedding_idx_of_embedding_1536; ALTER TABLE segments ALTER embedding_1536 TYPE halfvec(1536)",
            marks=pytest.mark.pgvector("0.7"),
        ),
    ],
)
def test_whatever_is_done_to_the_table_by_hand_the_application_can_change_texts(database, migration, statement):
    fill_and_swap(migration)
    execute(database, statement)
    table = "passages" if "passages" in statement else "segments"
    key = "number" if "number" in statement else "id"
    execute(database, f"UPDATE {table} SET text = 'another text' WHERE {key} = 1")
    left = {"embedding", "embedding_1536"} & columns_of(database, table).keys()
    for column in left:
        assert scalar(database, f"SELECT {column} FROM {table} WHERE {key} = 1") is None
    assert left or "RENAME" in statement


def test_the_trigger_waits_for_nobody_who_holds_our_tables(database, migration):
    fill(migration)
    put_in_quarantine(database, 1)
    with application(database) as operator, application(database) as other:
        operator.exec_driver_sql("LOCK TABLE segments_embedding_quarantine, segments_embedding_journal")
        other.exec_driver_sql("SET lock_timeout = '200ms'")
        other.exec_driver_sql("UPDATE segments SET text = 'another text' WHERE id = 1")


def test_a_text_that_a_trigger_edits_while_its_vector_is_written_gets_the_vector_of_the_edited_text(
    database, migration
):
    execute(database, EDITS)
    execute(database, "CREATE TRIGGER shouts BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION shout()")
    case_matters = Wrapped(
        after=lambda texts, vectors: np.where([[text.isupper()] for text in texts], vectors, -vectors)
    )
    expand(migration, case_matters.space)
    result = backfill(migration, case_matters)
    assert (result.pending_after, result.left_changed >= 300) == (0, True)
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_a_text_that_a_trigger_edits_each_time_stays_pending_and_the_backfill_ends(database, make_settings, caplog):
    execute(database, EDITS.replace("upper(NEW.text)", "NEW.text || '!'"))
    execute(
        database,
        "CREATE TRIGGER shouts BEFORE UPDATE ON segments FOR EACH ROW WHEN (NEW.id = 7) EXECUTE FUNCTION shout()",
    )
    settings = make_settings(backfill_max_attempts=1)
    expand(Migration(database, settings), ENCODER.space)
    assert backfill(Migration(database, settings), ENCODER).pending_after == 1
    assert pending_ids(database) == [7]
    assert "by a trigger of its own" in caplog.text
    skipping = make_settings(backfill_triggers="skip")
    assert backfill(Migration(database, skipping), ENCODER).pending_after == 0


def test_a_changed_text_leaves_quarantine(database, migration):
    fill(migration)
    put_in_quarantine(database, 1, 2)
    execute(database, "UPDATE segments SET text = 'better' WHERE id = 1")
    with database.autocommit() as connection:
        assert [row.row_id for row in list_quarantined(connection, SEGMENTS)] == ["2"]
