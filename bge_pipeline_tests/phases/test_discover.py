"""Discover lists every vector column that search may read, and tells whose table it looks like."""

from __future__ import annotations

import pytest

from bge_pipeline.phases.discover import discover
from bge_pipeline_tests.support import ENCODER, execute, fill_and_swap, schema_of

pytestmark = pytest.mark.pgvector


def by_name(database):
    return {one.name: one for one in discover(database)}


def test_the_columns_of_this_project_are_not_listed_but_the_one_that_search_reads(database, migration):
    before = schema_of(database)
    (legacy,) = discover(database)
    assert schema_of(database) == before
    assert (legacy.name, legacy.found.type, legacy.found.rows) == ("public.segments.embedding", "vector(1536)", 300)
    assert legacy.found.index == "segments_embedding_idx (ivfflat)"
    assert legacy.framework is None

    fill_and_swap(migration)

    (swapped,) = discover(database)
    assert (swapped.found.dimensions, swapped.model) == (384, str(ENCODER.space))
    assert swapped.settings() == {
        "TARGET_SCHEMA": "public",
        "TARGET_TABLE": "segments",
        "TARGET_ID_COLUMN": "id",
        "TARGET_TEXT_COLUMN": "text",
        "TARGET_EMBEDDING_COLUMN": "embedding",
    }


@pytest.mark.parametrize(
    ("table", "framework", "key", "text_column"),
    [
        (
            "langchain_id uuid PRIMARY KEY, content text NOT NULL, langchain_metadata json, embedding vector(8)",
            "LangChain PGVectorStore",
            "langchain_id",
            "content",
        ),
        (
            "id varchar PRIMARY KEY, collection_id uuid, embedding vector, document varchar, cmetadata jsonb",
            "LangChain PGVector",
            "id",
            "document",
        ),
        pytest.param(
            "id bigserial PRIMARY KEY, text varchar, metadata_ json, node_id varchar, embedding halfvec(8)",
            "LlamaIndex",
            "id",
            "text",
            marks=pytest.mark.pgvector("0.7"),
        ),
        ("id uuid PRIMARY KEY, vector vector(8), payload jsonb", "mem0", "id", "payload->>'data'"),
        ("title text, summary text, embedding vector(8)", None, None, None),
        (
            "tenant_id uuid, doc_id bigint, body text, PRIMARY KEY (tenant_id, doc_id), embedding vector(8)",
            None,
            "tenant_id,doc_id",
            "body",
        ),
        (
            "document_id text, no int, chunk text, UNIQUE (document_id, no), embedding vector(8)",
            None,
            None,
            "chunk",
        ),
        (
            'doc text NOT NULL, "Chunk, No" int NOT NULL, body text, UNIQUE (doc, "Chunk, No"), embedding vector(8)',
            None,
            'doc,"Chunk, No"',
            "body",
        ),
        ("slug text PRIMARY KEY, summary text, embedding vector(8)", None, "slug", "summary"),
    ],
)
def test_a_table_is_known_by_its_columns(database, table, framework, key, text_column):
    execute(database, 'CREATE SCHEMA "The Shop"')
    execute(database, f'CREATE TABLE "The Shop"."Things" ({table})')

    one = next(found for name, found in by_name(database).items() if name.startswith("The Shop.Things."))

    assert (one.framework, one.settings().get("TARGET_ID_COLUMN"), one.text) == (framework, key, text_column)
    assert one.found.rows is None, "nobody has analysed it"
