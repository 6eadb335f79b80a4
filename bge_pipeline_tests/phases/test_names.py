"""Tables, columns and schemas of any name, ids of any kind: all phases work and nothing in a name is run."""

from __future__ import annotations

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sql import quote
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import execute, fill, fill_and_swap, scalar, swap

pytestmark = pytest.mark.pgvector

SMALL = HashingEncoder(8)
OTHER_SMALL = HashingEncoder(8, seed=1)

NAMES = {
    "capitals and spaces": ("public", "Order Notes", "Id", "Body", "vec"),
    "quotes": ("public", 'it\'s "quoted"', 'the "id"', "o'text", 'a"b'),
    "percent signs": ("public", "100%", "%s", "%(text)s", "50%%"),
    "colons and braces": ("public", ":table", "{id}", "::text", "{}:vec"),
    "dollars": ("public", "$$", "$1", "$body$", "$$vec$$"),
    "backslashes": ("public", r"back\slash", r"\d", r"\:text", r"\\"),
    "injection": ("public", 'x"; DROP TABLE victims; --', "id", "text", "e'); DROP TABLE victims; --"),
    "reserved words": ("public", "table", "user", "select", "order"),
    "other alphabets": ("схема", "таблица", "ключ", "本文", "ベクトル"),
    "another schema": ("app data", "notes", "id", "text", "embedding"),
    "as long as can be": ("s" * 63, "t" * 63, "i" * 63, "x" * 63, "e" * 63),
}
IDS = {
    "smallint": "SELECT n::smallint AS i",
    "int": "SELECT n * 1000 AS i",
    "bigint": "SELECT n + (1::bigint << 40) AS i",
    "uuid": "SELECT md5(n::text)::uuid AS i",
}


def make_table(database, names, id_type="int"):
    schema, table, id_column, text_column, embedding = names
    execute(database, "CREATE TABLE IF NOT EXISTS victims (n int)")
    with database.transaction() as connection:
        cursor = connection.connection.dbapi_connection.cursor()
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        cursor.execute(
            f"CREATE TABLE {quote(schema, table)} ({quote(id_column)} {id_type} PRIMARY KEY, "
            f"{quote(text_column)} varchar(100), {quote(embedding)} vector(4))"
        )
        cursor.execute(
            f"INSERT INTO {quote(schema, table)} SELECT i.*, 'note number ' || n, '[1,2,3,4]' "
            f"FROM generate_series(1, 25) n, LATERAL ({IDS[id_type]}) i"
        )
        cursor.execute(f"CREATE INDEX ON {quote(schema, table)} USING hnsw ({quote(embedding)} vector_l2_ops)")


def settings_for(make_settings, names):
    schema, table, id_column, text_column, embedding = names
    return make_settings(
        target_schema=schema,
        target_table=table,
        target_id_column=id_column,
        target_text_column=text_column,
        target_embedding_column=embedding,
        embedding_dimensions=8,
        backfill_batch_rows=10,
    )


def vectors(database, names):
    schema, table, id_column, _, embedding = names
    with database.autocommit() as connection:
        cursor = connection.connection.dbapi_connection.cursor()
        cursor.execute(f"SELECT {quote(embedding)}::text FROM {quote(schema, table)} ORDER BY {quote(id_column)}")
        return [row[0] for row in cursor.fetchall()]


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_any_names_go_through_all_phases(database, make_settings, names):
    make_table(database, names)
    settings = settings_for(make_settings, names)
    before = vectors(database, names)
    fill_and_swap(Migration(database, settings), SMALL)
    assert read_status(Migration(database, settings)).embedded == 25
    with database.transaction() as connection:
        cursor = connection.connection.dbapi_connection.cursor()
        cursor.execute(f"UPDATE {quote(*names[:2])} SET {quote(names[3])} = 'changed'")
    assert read_status(Migration(database, settings)).pending == 25
    fill(Migration(database, settings), SMALL)
    assert len(set(vectors(database, names))) == 1
    rollback(Migration(database, settings))
    assert vectors(database, names) == [None] * 25
    assert before == ["[1,2,3,4]"] * 25
    swap(Migration(database, settings), SMALL)
    retire(Migration(database, settings), reclaim=True)
    assert read_status(Migration(database, settings)).phase == "retired"
    assert scalar(database, "SELECT count(*) FROM victims") == 0


@pytest.mark.parametrize("id_type", IDS)
def test_any_kind_of_id_goes_through_all_phases(database, make_settings, id_type):
    names = ("public", "notes", "id", "text", "embedding")
    make_table(database, names, id_type)
    settings = settings_for(make_settings, names)
    fill_and_swap(Migration(database, settings), SMALL)
    texts = [row[0] for row in execute(database, "SELECT text FROM notes ORDER BY id")]
    expected = SMALL.encode(SMALL.tokenize(texts))
    for found, wanted in zip(vectors(database, names), expected, strict=True):
        assert [float(x) for x in found[1:-1].split(",")] == pytest.approx(wanted.tolist(), abs=1e-6)
    rollback(Migration(database, settings))
    collapse(Migration(database, settings))
    assert vectors(database, names) == ["[1,2,3,4]"] * 25


def test_equal_dimensions_on_a_long_name(database, make_settings):
    names = NAMES["as long as can be"]
    make_table(database, names)
    settings = settings_for(make_settings, names)
    fill_and_swap(Migration(database, settings), SMALL)
    retire(Migration(database, settings))
    fill_and_swap(Migration(database, settings), OTHER_SMALL)
    rollback(Migration(database, settings))
    swap(Migration(database, settings), OTHER_SMALL)
    assert read_status(Migration(database, settings)).embedded == 25


def test_vectors_in_a_schema_that_is_not_on_the_path(database, database_url, settings):
    execute(database, "CREATE SCHEMA extensions")
    execute(database, "ALTER EXTENSION vector SET SCHEMA extensions")
    with Database(database_url) as fresh:
        fill_and_swap(Migration(fresh, settings))
        rollback(Migration(fresh, settings))
        swap(Migration(fresh, settings))
        retire(Migration(fresh, settings))
        execute(fresh, "SET search_path = public")
    with Database(database_url) as application:
        execute(application, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert scalar(application, "SELECT embedding FROM segments WHERE id = 1") is None
