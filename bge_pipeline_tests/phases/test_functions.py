"""Functions that read the column, Supabase's `match_documents` first: named beforehand, mended by the printed statement."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import ENCODER, application, as_it_stands, fill, swap

pytestmark = pytest.mark.pgvector

MATCH_DOCUMENTS = """
create or replace function match_documents (
  query_embedding vector(1536),
  match_threshold float,
  match_count int
)
returns table (
  id bigint,
  content text,
  similarity float
)
language sql stable
as $$
  select
    documents.id,
    documents.content,
    1 - (documents.embedding <=> query_embedding) as similarity
  from documents
  where 1 - (documents.embedding <=> query_embedding) > match_threshold
  order by (documents.embedding <=> query_embedding) asc
  limit match_count;
$$
"""
"""https://supabase.com/docs/guides/ai/semantic-search, its `documents` beside it."""

OTHERS = {
    "match_rows": "returns setof documents language sql as $$ select * from documents "
    "order by documents.embedding <#> query_embedding limit 3 $$",
    "match_cast": "returns setof bigint language sql as $$ select id from documents "
    "order by embedding <=> query_embedding::extensions.VECTOR ( 1536 ) limit 3 $$",
    "match_declared": "returns setof bigint language plpgsql as $$ declare q extensions.vector(1536) := query_embedding; "
    "begin return query select id from documents order by embedding <=> q limit 3; end $$",
    "match_typed": "returns setof bigint language plpgsql as $$ declare q documents.embedding%TYPE := query_embedding; "
    "begin return query select id from documents order by embedding <=> q limit 3; end $$",
    "match_dynamic": "returns setof bigint language plpgsql as $$ begin return query execute 'select id from documents "
    "order by embedding <=> $1::vector(1536) limit 3' using query_embedding; end $$",
}
BY_POSITION = {
    "match_list": "returns setof documents language sql as $$ select id, content, embedding from documents limit 3 $$",
    "match_all": "returns table (id bigint, content text, embedding vector) language sql as $$ "
    "select * from documents limit 3 $$",
}
PINNED = ("match_cast", "match_declared", "match_typed", "match_dynamic")


@pytest.fixture
def documents(database: Database, make_settings: Callable[..., Settings]) -> Migration:
    """The migration of Supabase's table, with the extension in a schema of its own as there."""
    with database.transaction() as connection:
        for statement in (
            "CREATE SCHEMA extensions",
            "ALTER EXTENSION vector SET SCHEMA extensions",
            "ALTER DATABASE {} SET search_path = public, extensions",
        ):
            name = connection.exec_driver_sql("SELECT quote_ident(current_database())").scalar_one()
            connection.exec_driver_sql(statement.format(name))
    database.engine.dispose()
    as_it_stands(
        database, "CREATE TABLE documents (id bigserial PRIMARY KEY, content text NOT NULL, embedding vector(1536))"
    )
    as_it_stands(
        database,
        "INSERT INTO documents (content, embedding) SELECT 'content ' || id, embedding FROM segments ORDER BY id LIMIT 30",
    )
    as_it_stands(database, MATCH_DOCUMENTS)
    return Migration(database, make_settings(target_table="documents", target_text_column="content"))


def called(session: Connection, function: str, dimensions: int) -> str:
    """What a call says: `ok`, or the server's error."""
    vector = str([1.0] + [0.5] * (dimensions - 1))
    try:
        with session.begin_nested():
            rows = session.exec_driver_sql(f"SELECT * FROM {function}('{vector}', -10, 3)").all()
    except DBAPIError as error:
        return str(error.orig).splitlines()[0]
    return "ok" if len(rows) == 3 else f"{len(rows)} rows"


def mentions(migration: Migration) -> dict[str, str]:
    found = plan(migration, EmbeddingsService(ENCODER, migration.settings)).mentions
    return {one.removeprefix("function ").partition("(")[0]: one for one in found}


def make(migration: Migration, functions: dict[str, str]) -> None:
    for name, rest in functions.items():
        arguments = "query_embedding vector(1536), match_threshold float, match_count int"
        as_it_stands(migration.database, f"create function {name}({arguments}) {rest}")


def test_match_documents_reads_the_new_vectors_and_the_old_ones_after_a_rollback(documents: Migration):
    (told,) = mentions(documents).values()
    assert "vectors that it is given have 384 dimensions then" in told
    assert "DO " not in told, "there is nothing in it to mend"

    with application(documents.database) as session:
        assert called(session, "match_documents", 1536) == "ok"
        session.commit()
        fill(documents)
        assert called(session, "match_documents", 1536) == "ok"
        session.commit()
        swap(documents)
        assert called(session, "match_documents", 384) == "ok"
        assert called(session, "match_documents", 1536) == "different vector dimensions 384 and 1536"
        session.commit()
        rollback(documents)
        assert called(session, "match_documents", 1536) == "ok"


def test_what_names_the_old_dimensions_is_mended_beforehand_by_what_plan_prints(
    documents: Migration, caplog: pytest.LogCaptureFixture
):
    make(documents, OTHERS)
    told = mentions(documents)
    assert set(told) == {"match_documents", *OTHERS}
    statements = {name: one.partition("before the swap: ")[2] for name, one in told.items()}
    assert {name for name, statement in statements.items() if statement} == set(PINNED)

    with application(documents.database) as session:
        for name in OTHERS:
            assert called(session, name, 1536) == "ok"
        session.commit()
        fill(documents)
        swap(documents)
        assert {name for name in PINNED if f"function {name}(" in caplog.text} == set(PINNED)
        for name in PINNED:
            assert called(session, name, 384) == "expected 1536 dimensions, not 384", name
        assert called(session, "match_rows", 384) == "ok"
        session.commit()
        for name in PINNED:
            as_it_stands(documents.database, statements[name])
        for name in OTHERS:
            assert called(session, name, 384) == "ok", name
        session.commit()
        rollback(documents)
        for name in OTHERS:
            assert called(session, name, 1536) == "ok", name


def test_what_returns_columns_by_their_position_is_named_before_expand_breaks_it(documents: Migration):
    make(documents, BY_POSITION)
    told = mentions(documents)
    assert {name for name, one in told.items() if "fails as soon as expand adds one" in one} == set(BY_POSITION)
    with application(documents.database) as session:
        for name in BY_POSITION:
            assert called(session, name, 1536) == "ok"
        session.commit()
        expand(documents, ENCODER.space)
        for name in BY_POSITION:
            assert called(session, name, 1536).startswith("return type mismatch")


def test_a_function_of_another_table_that_names_such_vectors_is_named_with_its_statement(documents: Migration):
    as_it_stands(
        documents.database,
        "CREATE FUNCTION parsed(given text) RETURNS vector LANGUAGE sql AS $$ SELECT given::vector(1536) $$",
    )
    assert "says vector(1536)" in mentions(documents)["parsed"]


def test_a_halfvec_column_does_not_fit_a_function_that_returns_vector(
    documents: Migration, make_settings: Callable[..., Settings]
):
    make(
        documents,
        {
            "match_vectors": "returns table (id bigint, embedding vector) language plpgsql as $$ begin return query "
            "select d.id, d.embedding from documents d limit 3; end $$"
        },
    )
    halfvec = documents.with_settings(target_vector_type="halfvec")
    assert "embedding::vector" in mentions(halfvec)["match_vectors"]
    assert "embedding::vector" not in mentions(documents)["match_vectors"]
