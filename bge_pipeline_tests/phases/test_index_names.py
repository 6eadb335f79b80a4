"""The vector index keeps its name through a swap and back, since frameworks know their index by it."""

from __future__ import annotations

import pytest

from bge_pipeline.database.sql import quote
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import as_it_stands, execute, fill, fill_and_swap, schema_of, swap

pytestmark = pytest.mark.pgvector

INDEX = "segments_embedding_idx"
ODD = 'the "index" ON: 100%'


def names_by_column(database) -> dict[str, list[str]]:
    """Names of the vector indexes of each column."""
    found: dict[str, list[str]] = {}
    for column, name in execute(
        database,
        "SELECT a.attname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_am m ON m.oid = c.relam JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
        "WHERE i.indrelid = 'segments'::regclass AND m.amname IN ('ivfflat', 'hnsw') ORDER BY 1, 2",
    ):
        found.setdefault(column, []).append(name)
    return found


@pytest.mark.parametrize("name", [INDEX, ODD])
@pytest.mark.parametrize("old_index", ["keep", "drop"])
def test_the_name_goes_over_and_comes_back(database, make_settings, name, old_index):
    settings = make_settings(old_index=old_index)
    if name != INDEX:
        as_it_stands(database, f"ALTER INDEX {INDEX} RENAME TO {quote(name)}")

    result = fill_and_swap(Migration(database, settings))

    aside = [] if old_index == "drop" else [f"{name}_of_embedding_1536"]
    assert result.index_name == name
    assert read_status(Migration(database, settings)).index.name == name
    assert names_by_column(database) == {"embedding": [name]} | ({"embedding_1536": aside} if aside else {})

    back = rollback(Migration(database, settings))

    assert back.restored_indexes == ((name,) if old_index == "drop" else ())
    found = names_by_column(database)
    assert found["embedding"] == [name]
    assert found["embedding_384"][0].startswith("ix_segments_embedding_384_")

    again = swap(Migration(database, settings))

    assert (again.index_name, again.index_built) == (name, False)
    retire(Migration(database, settings))
    assert names_by_column(database) == {"embedding": [name]}


def test_the_old_vectors_may_go_in_the_swap_and_the_name_stays(database, make_settings):
    result = fill_and_swap(Migration(database, make_settings(old_embedding="drop")))
    assert result.index_name == INDEX
    assert names_by_column(database) == {"embedding": [INDEX]}


def test_nothing_is_left_of_it_after_a_rollback_that_discards(database, migration):
    before = schema_of(database)
    fill_and_swap(migration)
    rollback(migration)
    collapse(migration)
    assert schema_of(database) == before


def test_a_name_that_somebody_took_meanwhile_is_left_alone(database, make_settings):
    settings = make_settings(old_index="drop")
    fill(Migration(database, settings))
    execute(database, f"CREATE INDEX {INDEX} ON segments (text)")

    result = swap(Migration(database, settings))

    assert result.index_name.startswith("ix_segments_embedding_384_")
    assert names_by_column(database) == {"embedding": [result.index_name]}


def test_without_an_old_index_the_new_one_has_a_name_of_its_own(database, migration):
    execute(database, f"DROP INDEX {INDEX}")
    assert fill_and_swap(migration).index_name.startswith("ix_segments_embedding_384_")
