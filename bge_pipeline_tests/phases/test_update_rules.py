"""Rules of the application on UPDATE: those that do something besides, and those that do something else."""

from __future__ import annotations

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import TargetTableError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline_tests.support import ENCODER, execute, fill, fill_and_swap, scalar, schema_of, wrong_vectors

pytestmark = pytest.mark.pgvector

ALSO = """
CREATE TABLE changes (id bigint, text text);
CREATE RULE note_changes AS ON UPDATE TO segments DO ALSO INSERT INTO changes VALUES (OLD.id, NEW.text)
"""
INSTEAD = "CREATE RULE keep_rows AS ON UPDATE TO segments DO INSTEAD NOTHING"
CONDITIONAL = "CREATE RULE keep_some AS ON UPDATE TO segments WHERE OLD.id > 100 DO INSTEAD NOTHING"


def planned(database, settings):
    return plan(Migration(database, settings), EmbeddingsService(ENCODER, settings))


def refusal(act):
    with pytest.raises(TargetTableError) as refused:
        act()
    return refused.value


def test_what_is_done_besides_goes_on_through_all_phases(database: Database, migration: Migration):
    execute(database, ALSO)
    [told] = planned(database, migration.settings).triggers
    assert told.startswith("rule note_changes (ON UPDATE DO ALSO): ")
    fill_and_swap(migration)
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert scalar(database, "SELECT count(DISTINCT id) FROM changes") == 300
    rollback(migration)
    fill_and_swap(migration)
    retire(migration)
    assert wrong_vectors(database, ENCODER, "embedding") == []


@pytest.mark.parametrize("rule", [INSTEAD, CONDITIONAL], ids=["always", "for some rows"])
def test_where_something_else_is_done_nothing_begins(database, migration, rule):
    execute(database, rule)
    before = schema_of(database)
    [obstacle] = planned(database, migration.settings).obstacles
    error = refusal(lambda: expand(migration, ENCODER.space))
    assert '(ON UPDATE DO INSTEAD) of "public"."segments" does something else in place of an UPDATE' in str(error)
    assert 'ALTER TABLE "public"."segments" DISABLE RULE "keep_' in obstacle
    assert schema_of(database) == before


def test_the_remedy_works(database, migration):
    execute(database, INSTEAD)
    remedy = refusal(lambda: expand(migration, ENCODER.space)).next_step.partition(";")[0]
    execute(database, remedy)
    fill(migration)
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_a_rule_that_came_after_expand_stops_the_backfill(database, migration):
    expand(migration, ENCODER.space)
    execute(database, INSTEAD)
    error = refusal(lambda: backfill(migration, ENCODER))
    assert "keep_rows" in str(error)


def test_skipping_triggers_leaves_rules_out_but_for_those_of_every_session(database, make_settings):
    migration = Migration(database, make_settings(backfill_triggers="skip"))
    execute(database, INSTEAD)
    fill(migration)
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    execute(database, "ALTER TABLE segments ENABLE ALWAYS RULE keep_rows")
    error = refusal(lambda: backfill(migration, ENCODER))
    assert error.next_step == 'ALTER TABLE "public"."segments" DISABLE RULE "keep_rows";'
