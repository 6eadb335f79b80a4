"""The way back of a table that has lived on since the swap: rows came, and the application gave the new column its own things."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bge_pipeline.cli import app
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases import rollback as rollback_module
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import restore_indexes
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.rollback import rollback, rollback_cost
from bge_pipeline.phases.state import require_table
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import (
    ENCODER,
    application,
    execute,
    fill_and_swap,
    scalar,
    schema_of,
    statements_run_by,
)

pytestmark = pytest.mark.pgvector


@pytest.fixture
def settings(make_settings):
    """The old index goes, so that the way back has to build it again."""
    return make_settings(old_index="drop")


def test_what_the_application_gave_the_column_since_goes_back_with_its_name(database, migration):
    fill_and_swap(migration)
    backfill(migration, ENCODER)
    execute(database, "ALTER TABLE segments ALTER COLUMN embedding SET NOT NULL")
    execute(database, "GRANT SELECT (embedding) ON segments TO PUBLIC")
    rollback(migration)
    old_code = (
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text, embedding) "
        "SELECT source_id, 'new', 1, 2, 'new', embedding FROM segments LIMIT 1"
    )
    execute(database, old_code)
    privileges = "SELECT attacl::text FROM pg_attribute WHERE attrelid = 'segments'::regclass AND attname = 'embedding'"
    assert "=r/" in scalar(database, privileges)


class TestTheCountOfRowsWithoutAnOldVector:
    """It reads the table, which may be large, while search waits for the way back."""

    @pytest.fixture(autouse=True)
    def swapped(self, database, migration):
        fill_and_swap(migration)
        execute(database, "UPDATE segments SET text = 'changed' WHERE id <= 3")
        return database

    def test_comes_after_the_exchange_where_nobody_is_asked(self, settings, monkeypatch):
        for name, value in environment(settings).items():
            monkeypatch.setenv(name, value)
        done = []
        statements = statements_run_by(lambda: done.append(CliRunner().invoke(app, ["rollback", "--yes", "--json"])))
        assert json.loads(done[0].stdout)["rows_without_old_vector"] == 3
        exchanged = next(place for place, statement in enumerate(statements) if "RENAME COLUMN" in statement)
        counted = [
            place for place, statement in enumerate(statements) if "count(" in statement and "segments" in statement
        ]
        assert min(counted) > exchanged

    @pytest.mark.parametrize(("most", "said"), [(3, "3 rows came"), (2, "more than 2 rows came")])
    def test_ends_before_the_question_when_it_is_enough(self, migration, monkeypatch, most, said):
        monkeypatch.setattr(rollback_module, "_MOST_COUNTED", most)
        assert rollback_cost(migration).startswith(said)

    def test_is_given_up_when_it_takes_long(self, swapped, migration, monkeypatch):
        original = rollback_module.count_lacking_within

        def kept_waiting(database, target, column, _milliseconds, **most):
            with application(swapped) as other:
                other.exec_driver_sql("LOCK TABLE segments")
                return original(database, target, column, 50, **most)

        monkeypatch.setattr(rollback_module, "count_lacking_within", kept_waiting)
        assert "counting them takes long" in rollback_cost(migration)
        result = rollback(migration)
        assert result.rows_without_old_vector is None
        assert result.notices[0].startswith("rows, which bge-pipeline status counts, came or changed")


class TestWhatDependsOnTheNewColumn:
    """Views and the like that were made since the swap."""

    VIEW = "CREATE VIEW nearest AS SELECT id, embedding FROM segments"

    def test_is_named_and_the_rollback_refused_before_anything_is_done(self, database, migration):
        fill_and_swap(migration)
        execute(database, self.VIEW)
        before = schema_of(database)
        with pytest.raises(SwapRefused, match="view nearest") as refused:
            rollback(migration)
        assert "DEPENDENTS=ignore" in refused.value.next_step
        assert schema_of(database) == before
        execute(database, "DROP VIEW nearest")
        assert rollback(migration).kept_column == "embedding_384"

    def test_is_seen_under_the_lock_where_it_came_meanwhile(self, database, migration, monkeypatch):
        fill_and_swap(migration)

        def restore_and_create(*arguments, **told):
            names = restore_indexes(*arguments, **told)
            execute(database, self.VIEW)
            return names

        monkeypatch.setattr(rollback_module, "restore_indexes", restore_and_create)
        with pytest.raises(SwapRefused, match="view nearest"):
            rollback(migration)
        assert require_table(migration).phase == "swapped"

    def test_can_be_left_on_the_new_vectors_on_purpose(self, database, migration, make_settings, caplog):
        fill_and_swap(migration)
        execute(database, self.VIEW)
        rollback(Migration(database, make_settings(dependents="ignore")))
        assert scalar(database, "SELECT max(vector_dims(embedding)) FROM nearest") == 384
        assert "stay bound to the new vectors, in 'embedding_384' from now on: view nearest" in caplog.text
