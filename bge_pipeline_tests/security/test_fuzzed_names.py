"""Schemas, tables and columns of any name that PostgreSQL takes: a migration goes all the way, and nothing else is touched."""

from __future__ import annotations

import contextlib
import io
import itertools

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from bge_pipeline.cli import printing, printing_search
from bge_pipeline.cli.env_file import write_env
from bge_pipeline.database.sql import MAX_IDENTIFIER_BYTES, quote
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.discover import discover
from bge_pipeline.phases.doctor import examine
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.search import Retriever, create_text_index
from bge_pipeline.settings import load_settings
from bge_pipeline.settings.column_list import join_columns
from bge_pipeline_tests.support import as_it_stands, fill, fill_and_swap, parsed, scalar, swap

SMALL = HashingEncoder(8)
TEXTS = [f"note number {number}" for number in range(12)]
FRAGMENTS = [
    '"', "'", "''", '""', "\\", "\\'", "%", "%%", "%s", "%(text)s", ":name", "::text", ":'x'", "{}", "{id}",
    "{0.__class__}", "$1", "$$", "$body$", "--", "/*", "*/", ";", "\n", "\r", "\t", "\x01", "\x1b[31m", "\x7f",
    "\x85", "\u2028", " ", ".", ",", "(", ")", "[", "]", "[/b]", "[bold]", "<b>", "&amp;", "|", "#", "@", "?", "=",
    "*", "`", "~", "select", "table", "user", "order", "DROP TABLE victims", "E'", "U&", "id", "ID", "text",
    "embedding", "_384", "_8", "_old", "_idx", "ключ", "本文", "ñ", "n\u0303", "🙂", "\u202e", "\u200b", "\ufeff", "ß",
    "İ",
]  # fmt: skip
IDENTIFIERS = (
    st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
             min_size=1, max_size=40)
    .map("".join)
    .map(lambda name: name.encode()[:MAX_IDENTIFIER_BYTES].decode(errors="ignore"))
    .filter(lambda name: name and not name.startswith("pg_"))
)  # fmt: skip
NAMES = st.tuples(*[IDENTIFIERS] * 5)
WITH_A_DATABASE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]

_OTHERS = """
SELECT 'relation', n.nspname, c.relname, c.relkind::text, obj_description(c.oid, 'pg_class') FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.oid <> :own AND n.nspname !~ '^pg_(toast|temp)'
UNION ALL SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace <> :own AND c.relname IN ('victims', 'segments')
UNION ALL SELECT 'function', pronamespace::regnamespace::text, proname, prosrc, NULL FROM pg_proc WHERE pronamespace <> :own
UNION ALL SELECT 'trigger', c.relname, tgname, tgtype::text, tgenabled::text FROM pg_trigger t
JOIN pg_class c ON c.oid = tgrelid WHERE c.relnamespace <> :own
UNION ALL SELECT 'role', rolname, rolsuper::text, NULL, NULL FROM pg_roles
UNION ALL SELECT 'database', datname, NULL, NULL, NULL FROM pg_database WHERE datname = current_database()
UNION ALL SELECT 'row', NULL, v::text, NULL, NULL FROM public.victims v
UNION ALL SELECT 'row', NULL, md5(s::text), NULL, NULL FROM public.segments s
"""


def everything_else(database, schema):
    """All of a database but what is in that schema."""
    own = scalar(database, "SELECT oid FROM pg_namespace WHERE nspname = :schema", schema=schema)
    with database.autocommit() as connection:
        return sorted(map(tuple, connection.execute(text(_OTHERS), {"own": own})), key=str)


def contents(database, name):
    return sorted(str(tuple(row)) for row in as_it_stands(database, f"SELECT * FROM {name}"))


def make_table(database, names):
    """The table, and one beside it whose name differs from it in its last character alone, or in its length."""
    schema, table, identifier, body, embedding = names
    near = table[:-1] + ("y" if table[-1] == "x" else "x") if len(table) > 1 else table + "x"
    as_it_stands(database, f"CREATE SCHEMA {quote(schema)}")
    for name in (table, near):
        as_it_stands(
            database,
            f"CREATE TABLE {quote(schema, name)} ({quote(identifier)} int PRIMARY KEY, {quote(body)} varchar(100), "
            f"{quote(embedding)} vector(4))",
        )
        values = ", ".join(f"({number}, '{told}', '[1,2,3,{number}]')" for number, told in enumerate(TEXTS))
        as_it_stands(database, f"INSERT INTO {quote(schema, name)} VALUES {values}")
    as_it_stands(database, f"CREATE INDEX ON {quote(schema, table)} USING hnsw ({quote(embedding)} vector_l2_ops)")
    return quote(schema, near)


def vectors(database, names):
    schema, table, identifier, _, embedding = names
    rows = as_it_stands(
        database, f"SELECT {quote(embedding)}::text FROM {quote(schema, table)} ORDER BY {quote(identifier)}"
    )
    return [parsed(row[0]) for row in rows]


def all_the_way(database, make_settings, names):
    """Plan, expand, backfill, swap, search, rollback, swap again and retire, with a look at everything in between."""
    schema, table, identifier, body, embedding = names
    configured = make_settings(
        target_schema=schema,
        target_table=table,
        target_id_column=join_columns([identifier]),
        target_text_column=body,
        target_embedding_column=embedding,
        embedding_dimensions=8,
        backfill_batch_rows=5,
    )
    near = make_table(database, names)
    before, beside = everything_else(database, names[0]), contents(database, near)
    old, new = vectors(database, names), SMALL.encode(SMALL.tokenize(TEXTS))
    service = EmbeddingsService(SMALL, configured)

    assert plan(Migration(database, configured), service).obstacles == ()
    fill_and_swap(Migration(database, configured), SMALL)
    assert vectors(database, names) == [pytest.approx(vector.tolist(), abs=1e-6) for vector in new]
    create_text_index(database, configured)
    found = Retriever(database, configured, service).search(TEXTS[3], mode="hybrid", top_k=1, explain=True)
    assert [result.text for result in found.results] == [TEXTS[3]]
    examine(Migration(database, configured))
    assert any(one.found.table == names[1] for one in discover(database))
    rollback(Migration(database, configured))
    assert vectors(database, names) == old
    fill(Migration(database, configured), SMALL)
    swap(Migration(database, configured), SMALL)
    retire(Migration(database, configured))

    status = read_status(Migration(database, configured))
    assert (status.phase, status.embedded) == ("retired", len(TEXTS))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        printing.print_status(status)
        printing_search.print_search(found, explain=True)
    assert TEXTS[3] in shown.getvalue()
    assert not {"\x1b", "\x01", "\x7f", "\x85", "\u202e"} & set(shown.getvalue())
    assert vectors(database, names) == [pytest.approx(vector.tolist(), abs=1e-6) for vector in new]
    assert contents(database, near) == beside
    assert everything_else(database, names[0]) == before


def play(database, make_settings, names):
    assume(len(set(names[2:])) == 3)
    assume(scalar(database, "SELECT to_regnamespace(:schema) IS NULL", schema=quote(names[0])))
    try:
        all_the_way(database, make_settings, names)
    finally:
        as_it_stands(database, f"DROP SCHEMA IF EXISTS {quote(names[0])} CASCADE")


@pytest.fixture
def victims(database):
    as_it_stands(database, "CREATE TABLE victims (n int PRIMARY KEY, said text)")
    as_it_stands(database, "INSERT INTO victims VALUES (1, 'untouched')")
    as_it_stands(database, "COMMENT ON TABLE victims IS 'of somebody else'")
    return database


@pytest.mark.pgvector
@settings(max_examples=3, deadline=None, derandomize=True, database=None, suppress_health_check=WITH_A_DATABASE)
@given(NAMES)
@example(("'; DROP TABLE victims; --", '"; DROP TABLE victims; --', "%s", ":name", "{0.__class__}"))
@example(("a\nb", "[/b]\x1b[31m", "\\", "$$", "\r\n"))
def test_a_migration_goes_all_the_way_and_touches_nothing_else(victims, make_settings, names):
    play(victims, make_settings, names)


@pytest.mark.pgvector
@pytest.mark.thorough
@pytest.mark.timeout(1200)
@settings(max_examples=150, deadline=None, database=None, print_blob=True, suppress_health_check=WITH_A_DATABASE)
@given(NAMES)
def test_many_migrations_go_all_the_way_and_touch_nothing_else(victims, make_settings, names):
    play(victims, make_settings, names)


NUMBERS = itertools.count()


def can_stand_in_a_file(name: str) -> bool:
    """Names with line breaks or `${` are refused, as `test_a_name_that_cannot_stand_there_is_refused` has it."""
    return not {"\n", "\r"} & set(name) and "${" not in name


@given(
    names=st.dictionaries(
        st.sampled_from(["TARGET_TABLE", "TARGET_TEXT_COLUMN", "TARGET_SCHEMA"]),
        IDENTIFIERS.filter(can_stand_in_a_file),
        min_size=1,
    )
)
@settings(deadline=None, suppress_health_check=WITH_A_DATABASE)
def test_a_name_that_is_written_into_env_is_read_as_it_was(names, tmp_path):
    path = tmp_path / f"{next(NUMBERS)}.env"
    write_env(names, path)
    write_env({"TARGET_ID_COLUMN": "key"}, path, yes=True)
    found = load_settings(_env_file=path)
    assert {name: getattr(found, name.lower()) for name in names} == names


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a${HOME}"])
def test_a_name_that_cannot_stand_there_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot stand in \.env"):
        write_env({"TARGET_TABLE": name}, tmp_path / ".env")
