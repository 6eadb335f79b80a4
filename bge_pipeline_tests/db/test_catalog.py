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
        ("CREATE SEQUENCE odd", "not a table"),
    ],
)
def test_what_is_not_an_ordinary_table_is_named_by_its_kind(database, definition, kind):
    execute(database, definition)
    assert f"is {kind}" in refusal(database, replace(SEGMENTS, table="odd"))


def way_out(database, table):
    with database.autocommit() as connection, pytest.raises(TargetTableError) as refused:
        describe_table(connection, replace(SEGMENTS, table=table))
    return refused.value.next_step


def test_a_partition_is_refused_with_the_settings_that_take_its_rows_alone(database):
    execute(database, "CREATE TABLE whole (id int PRIMARY KEY, text text, embedding vector(3)) PARTITION BY RANGE (id)")
    execute(database, "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)")
    execute(database, "CREATE TABLE other PARTITION OF whole FOR VALUES FROM (9) TO (20)")
    execute(database, "INSERT INTO whole SELECT n FROM generate_series(0, 19) n")
    assert 'is a partition of "public"."whole"' in refusal(database, replace(SEGMENTS, table="part"))
    settings, condition = way_out(database, "part").split(", with TARGET_WHERE=")
    assert settings == "TARGET_SCHEMA=public TARGET_TABLE=whole"
    condition = condition.removesuffix(" where only the rows of this one are to get vectors of the new model")
    part = replace(SEGMENTS, table="whole", condition=condition)
    with database.autocommit() as connection:
        assert describe_table(connection, part).is_partitioned
        assert connection.execute(part.sql("SELECT count(*) FROM {table} WHERE {in_part}")).scalar_one() == 9


def test_a_partition_that_is_divided_again_and_one_by_a_hash_are_refused_too(database):
    execute(database, "CREATE TABLE whole (id int PRIMARY KEY, text text, embedding vector(3)) PARTITION BY RANGE (id)")
    execute(database, "CREATE TABLE part PARTITION OF whole DEFAULT PARTITION BY HASH (id)")
    execute(database, "CREATE TABLE odd PARTITION OF part FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    for table in ("part", "odd"):
        assert 'is a partition of "public"."whole"' in refusal(database, replace(SEGMENTS, table=table))
    assert way_out(database, "odd") == "TARGET_SCHEMA=public TARGET_TABLE=whole"


def test_views_and_foreign_tables_are_refused_with_the_table_that_is_meant(database):
    execute(database, "CREATE SCHEMA other")
    execute(database, "CREATE VIEW other.seen AS SELECT * FROM segments")
    execute(database, "CREATE MATERIALIZED VIEW kept AS SELECT * FROM other.seen")
    assert "TARGET_SCHEMA=other TARGET_TABLE=seen" in way_out(database, "kept")
    execute(database, "CREATE FOREIGN DATA WRAPPER nowhere")
    execute(
        database,
        "CREATE SERVER far FOREIGN DATA WRAPPER nowhere OPTIONS (host 'far.example', dbname 'texts', password 'pw')",
    )
    execute(database, "CREATE FOREIGN TABLE odd (id int, text text, embedding vector(3)) SERVER far")
    assert "a foreign table" in refusal(database, replace(SEGMENTS, table="odd"))
    assert "DATABASE_URL of the server far (dbname=texts host=far.example)" in way_out(database, "odd")
    execute(database, "CREATE TABLE whole (id int, text text, embedding vector(3)) PARTITION BY RANGE (id)")
    execute(database, "CREATE FOREIGN TABLE away PARTITION OF whole FOR VALUES FROM (0) TO (9) SERVER far")
    assert "away of" in refusal(database, replace(SEGMENTS, table="whole"))
    execute(database, way_out(database, "whole").split(" then ")[0])


def test_tables_of_an_inheritance_are_taken_apart_by_the_statements_that_are_named(database):
    execute(database, "CREATE TABLE parent (id int PRIMARY KEY, text text, embedding vector(3))")
    execute(database, "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)")
    execute(database, way_out(database, "parent").split("take it apart: ")[1].split(" then ")[0])
    with database.autocommit() as connection:
        for table in ("parent", "child"):
            assert not describe_table(connection, replace(SEGMENTS, table=table)).is_partitioned


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
