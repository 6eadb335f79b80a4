"""INDEX_METHOD=auto: the new index is of the old one's kind, metric and parameters, so that the application's SQL finds it."""

from __future__ import annotations

import pytest

from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.rollback import rollback
from bge_pipeline_tests.support import execute, fill_and_swap, scalar, swap

pytestmark = pytest.mark.pgvector

INDEX = "segments_embedding_idx"


@pytest.mark.parametrize("old_index", ["keep", "drop"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "hnsw (embedding vector_ip_ops) WITH (m = 7, ef_construction = 33)",
            "hnsw (embedding vector_ip_ops) WITH (m='7', ef_construction='33')",
        ),
        ("ivfflat (embedding vector_l2_ops) WITH (lists = 5)", "ivfflat (embedding) WITH (lists='1')"),
        pytest.param(
            "hnsw ((embedding::halfvec(1536)) halfvec_cosine_ops)",
            "hnsw (((embedding)::halfvec(384)) halfvec_cosine_ops) WITH (m='16', ef_construction='64')",
            marks=pytest.mark.pgvector("0.7"),
        ),
    ],
    ids=["hnsw", "ivfflat", "halfvec"],
)
def test_the_new_index_is_as_the_old_one_was(database, make_settings, old, new, old_index):
    settings = make_settings(old_index=old_index)
    execute(database, f"DROP INDEX {INDEX}")
    execute(database, f"CREATE INDEX {INDEX} ON segments USING {old}")
    result = fill_and_swap(Migration(database, settings))
    built = scalar(database, "SELECT pg_get_indexdef(to_regclass(:name))", name=result.index_name)
    assert built.partition(" USING ")[2] == new
    assert result.index_method == new.split()[0]
    rollback(Migration(database, settings))
    assert not swap(Migration(database, settings)).index_built, "the same index is found again"


def test_without_an_old_index_it_is_ivfflat(database, migration):
    execute(database, f"DROP INDEX {INDEX}")
    assert fill_and_swap(migration).index_method == "ivfflat"


def test_what_is_asked_for_goes_before_the_old_one(database, make_settings):
    result = fill_and_swap(Migration(database, make_settings(index_method="hnsw", index_m=5)))
    built = scalar(database, "SELECT pg_get_indexdef(to_regclass(:name))", name=result.index_name)
    assert "USING hnsw (embedding vector_cosine_ops) WITH (m='5', ef_construction='64')" in built
