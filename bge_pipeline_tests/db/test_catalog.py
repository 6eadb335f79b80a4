"""A table that cannot be migrated is refused in words, before anything is changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bge_pipeline.database.catalog import describe_table, pgvector_version
from bge_pipeline.database.ids import INTEGERS, UUIDS
from bge_pipeline.errors import TargetTableError
from bge_pipeline_tests.support import SEGMENTS, execute

pytestmark = pytest.mark.pgvector


def refusal(database, target):
    with database.autocommit() as connection, pytest.raises(TargetTableError) as refused:
        describe_table(connection, target)
    assert refused.value.state == "nothing was changed"
    return refused.value.message


def test_the_demo_table_is_described_as_it_is(database):
    with database.autocommit() as connection:
        table = describe_table(connection, SEGMENTS)
        assert pgvector_version(connection).startswith("0.")
    assert table.id_kind is INTEGERS
    assert table.embedding.dimensions == 1536
    assert table.columns["text"].not_null
    assert not table.columns["embedding"].not_null
    assert table.estimated_rows == 300


def test_a_table_that_is_not_there_is_named(database):
    assert '"public"."segmnets" does not exist' in refusal(database, replace(SEGMENTS, table="segmnets"))


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ("CREATE VIEW odd AS SELECT * FROM segments", "a view"),
        ("CREATE MATERIALIZED VIEW odd AS SELECT * FROM segments", "a materialized view"),
        ("CREATE TABLE odd (id int, text text, embedding vector(3)) PARTITION BY RANGE (id)", "a partitioned table"),
        ("CREATE SEQUENCE odd", "not a table"),
    ],
)
def test_what_is_not_an_ordinary_table_is_named_by_its_kind(database, definition, kind):
    execute(database, definition)
    assert f"is {kind}" in refusal(database, replace(SEGMENTS, table="odd"))


def test_a_partition_is_refused_since_it_cannot_have_columns_of_its_own(database):
    execute(database, "CREATE TABLE whole (id int NOT NULL, text text, embedding vector(3)) PARTITION BY RANGE (id)")
    execute(database, "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)")
    assert "is a partition" in refusal(database, replace(SEGMENTS, table="part"))


@pytest.mark.parametrize("name", ["parent", "child"])
def test_both_ends_of_inheritance_are_refused(database, name):
    execute(database, "CREATE TABLE parent (id int PRIMARY KEY, text text, embedding vector(3))")
    execute(database, "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)")
    assert "inheritance" in refusal(database, replace(SEGMENTS, table=name))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ("id int PRIMARY KEY, body text, embedding vector(3)", "no TARGET_TEXT_COLUMN 'text'"),
        ("id int PRIMARY KEY, body text", "no TARGET_TEXT_COLUMN 'text', no TARGET_EMBEDDING_COLUMN 'embedding'"),
        ("id int UNIQUE, text text, embedding vector(3)", "'id' may be NULL"),
        ("id int NOT NULL, text text, embedding vector(3)", "no unique index of its own"),
        ("id int, shard int, text text, embedding vector(3), PRIMARY KEY (id, shard)", "no unique index of its own"),
        ("id int PRIMARY KEY, text jsonb, embedding vector(3)", "'text' is jsonb"),
        ("id int PRIMARY KEY, text text[], embedding vector(3)", "'text' is text[]"),
        ("id int PRIMARY KEY, text text, embedding real[]", "'embedding' is real[]: expected a pgvector column"),
        (
            "id int PRIMARY KEY, text text, v vector(3), embedding vector(3) GENERATED ALWAYS AS (v) STORED",
            "'embedding' is a generated column",
        ),
    ],
)
def test_a_column_that_does_not_fit_is_named_with_what_was_expected(database, columns, complaint):
    execute(database, f"CREATE TABLE odd ({columns})")
    assert complaint in refusal(database, replace(SEGMENTS, table="odd"))


def test_a_unique_index_over_some_of_the_rows_is_not_enough(database):
    execute(database, "CREATE TABLE odd (id int NOT NULL, text text, embedding vector(3))")
    execute(database, "CREATE UNIQUE INDEX ON odd (id) WHERE text IS NOT NULL")
    assert "no unique index" in refusal(database, replace(SEGMENTS, table="odd"))


@pytest.mark.parametrize("kind", ["text", "varchar(200)", "char(20)", "character varying"])
@pytest.mark.parametrize("id_type", ["smallint", "int", "bigint", "uuid"])
def test_every_kind_of_text_and_id_that_is_promised_is_taken(database, kind, id_type):
    execute(database, f"CREATE TABLE odd (id {id_type} PRIMARY KEY, text {kind}, embedding vector(3))")
    with database.autocommit() as connection:
        table = describe_table(connection, replace(SEGMENTS, table="odd"))
    assert table.id_kind is (UUIDS if id_type == "uuid" else INTEGERS)


@pytest.mark.parametrize(
    ("kind", "dimensions"),
    [
        ("vector", None),
        ("vector(7)", 7),
        pytest.param("halfvec(9)", 9, marks=pytest.mark.pgvector("0.7")),
        pytest.param("bit(8)", 8, marks=pytest.mark.pgvector("0.7")),
    ],
)
def test_any_type_of_pgvector_may_hold_the_old_vectors(database, kind, dimensions):
    execute(database, f"CREATE TABLE odd (id int PRIMARY KEY, text text, embedding {kind})")
    with database.autocommit() as connection:
        assert describe_table(connection, replace(SEGMENTS, table="odd")).embedding.dimensions == dimensions


def test_a_database_without_pgvector_is_told_how_to_get_it(database):
    execute(database, "DROP EXTENSION vector CASCADE")
    with database.autocommit() as connection, pytest.raises(TargetTableError, match="pgvector") as refused:
        describe_table(connection, SEGMENTS)
    assert "CREATE EXTENSION vector" in (refused.value.next_step or "")
