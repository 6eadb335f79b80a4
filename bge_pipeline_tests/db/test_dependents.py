"""What would stay on the old vectors through the swap is found and named, whatever kind of object it is."""

from __future__ import annotations

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.dependents import find_dependents
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute

pytestmark = pytest.mark.pgvector

BODY = "LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$"


def dependents(database):
    with database.autocommit() as connection:
        found = find_dependents(connection, describe_table(connection, SEGMENTS), "embedding")
    return {(dependent.kind, dependent.name, dependent.bound) for dependent in found}


def test_a_table_on_its_own_has_none(database):
    assert dependents(database) == set()


@pytest.mark.parametrize(
    ("statements", "kind", "name"),
    [
        (["CREATE VIEW v AS SELECT id, embedding FROM segments"], "view", "v"),
        (["CREATE VIEW v AS SELECT * FROM segments"], "view", "v"),
        (["CREATE MATERIALIZED VIEW m AS SELECT embedding FROM segments"], "materialized view", "m"),
        (["CREATE POLICY p ON segments USING (embedding IS NOT NULL)"], "policy", "p"),
        (
            ["ALTER TABLE segments ADD COLUMN norm float8 GENERATED ALWAYS AS (vector_norm(embedding)) STORED"],
            "generated column",
            "norm",
        ),
        (
            [
                f"CREATE FUNCTION f() RETURNS trigger {BODY.format('')}",
                "CREATE TRIGGER u AFTER UPDATE OF embedding ON segments FOR EACH ROW EXECUTE FUNCTION f()",
            ],
            "trigger",
            "u",
        ),
        (
            [
                f"CREATE FUNCTION f() RETURNS trigger {BODY.format('')}",
                "CREATE TRIGGER w BEFORE UPDATE ON segments FOR EACH ROW WHEN (NEW.embedding IS NULL) EXECUTE FUNCTION f()",
            ],
            "trigger",
            "w",
        ),
        (["ALTER TABLE segments ADD CONSTRAINT c CHECK (vector_dims(embedding) = 1536)"], "constraint", "c"),
        (["CREATE STATISTICS s ON start_sec, (vector_dims(embedding)) FROM segments"], "statistics", "s"),
        (["CREATE PUBLICATION p FOR TABLE segments (id, embedding)"], "publication", "p"),
        (
            ["CREATE RULE kept AS ON INSERT TO segments DO ALSO UPDATE sources SET title = NEW.embedding::text"],
            "rule",
            "kept",
        ),
        (["CREATE INDEX missing ON segments (id) WHERE embedding IS NULL"], "index", "missing"),
        (
            ["CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(embedding) FROM segments; END"],
            "function",
            "f()",
        ),
    ],
)
def test_an_object_bound_to_the_column_is_named(database, statements, kind, name):
    for statement in statements:
        execute(database, statement)
    assert (kind, name, True) in dependents(database)


@pytest.mark.parametrize(
    ("statements", "kind", "name"),
    [
        (
            ["CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(Embedding) FROM Segments'"],
            "function",
            "f()",
        ),
        (
            [
                f"CREATE FUNCTION f() RETURNS trigger {BODY.format('NEW.embedding = NULL;')}",
                "CREATE TRIGGER t BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION f()",
            ],
            "function",
            "f()",
        ),
        (["CREATE PUBLICATION p FOR TABLE segments"], "publication", "p"),
        (["CREATE PUBLICATION p FOR TABLE segments (id, text)"], "publication", "p"),
        (["CREATE PUBLICATION p FOR ALL TABLES"], "publication", "p"),
        (["CREATE PUBLICATION p FOR TABLES IN SCHEMA public"], "publication", "p"),
    ],
)
def test_what_goes_by_the_name_of_the_column_is_named_but_not_bound(database, statements, kind, name):
    for statement in statements:
        execute(database, statement)
    assert (kind, name, False) in dependents(database)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW v AS SELECT id, text FROM segments",
        "CREATE PUBLICATION p FOR TABLE sources",
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(text) FROM segments'",
        "CREATE INDEX i ON segments USING hnsw (embedding vector_l2_ops)",
    ],
)
def test_what_does_not_depend_on_the_column_is_left_out(database, statement):
    execute(database, statement)
    assert dependents(database) == set()


def test_what_a_migration_itself_puts_beside_the_column_is_left_out(expanded):
    assert dependents(expanded) == set()
    index = SEGMENTS.pending_index("embedding", ENCODER.space.fingerprint)
    execute(expanded, f"CREATE INDEX {index} ON segments (id) WHERE embedding IS NULL AND (text COLLATE \"C\") ~ '\\S'")
    assert dependents(expanded) == set()
