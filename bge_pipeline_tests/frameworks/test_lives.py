"""A framework's table from the old model to the new one, there and back, and the framework at work on it all the while."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.orchestration.in_process import migrate_through_dagster
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.frameworks.application import Application
from bge_pipeline_tests.frameworks.conftest import DOCUMENTS, Command
from bge_pipeline_tests.frameworks.page import PARTS, read_page
from bge_pipeline_tests.support import execute

PAGE = read_page()
QUESTION = "How do I read a file line by line?"
NEWS = "A tortoise named Ferdinand eats dandelions in the garden behind the observatory."
CHANGED = "The lighthouse keeper polishes brass lamps before the autumn storms arrive."

pytestmark = [pytest.mark.frameworks, pytest.mark.pgvector]


def test_every_application_of_the_page_has_all_its_parts():
    assert {name: set(parts) for name, parts in PAGE.items()} == dict.fromkeys(PAGE, PARTS)


@pytest.mark.parametrize("name", PAGE)
def test_a_life_by_command(
    name: str,
    start: Callable[[str], Application],
    command: Callable[[str], Command],
    empty_database: Database,
    documents: dict[int, str],
    old_model: Encoder,
    new_model: Encoder,
):
    page, application, run = PAGE[name], start(name), command(PAGE[name]["settings"])
    application.open(page["create"], old_model)
    application.add(documents)
    assert application.search(QUESTION, 5) == nearest(old_model, documents.values(), QUESTION, 5)
    table = run("status")["table"]
    indexes = vector_indexes(empty_database, table)

    migrated = run("migrate", "--yes")

    assert migrated["swap"]["exchanged"]
    assert migrated["swap"]["gate"]["passed"]
    application.open(page["after"], new_model)
    assert application.search(QUESTION, 5) == nearest(new_model, documents.values(), QUESTION, 5)
    application.add({DOCUMENTS + 1: NEWS})
    application.update(7, CHANGED)
    application.delete(8)
    run("embed")
    texts = {number: text for number, text in documents.items() if number not in (7, 8)}
    texts |= {DOCUMENTS + 1: NEWS, 7: CHANGED}
    application.open(page["after"], new_model)
    found(application, new_model, texts)
    assert vector_indexes(empty_database, table) == indexes, "an index of the same name, on the new column alone"
    status = run("status")
    assert (status["phase"], status["rows"], status["pending"]) == ("swapped", DOCUMENTS, 0)

    back = run("rollback", "--yes")

    assert back["rows_without_old_vector"] == 2
    application.open(page["before"], old_model)
    known = {number: text for number, text in texts.items() if number not in (7, DOCUMENTS + 1)}
    assert application.search(QUESTION, 5) == nearest(old_model, known.values(), QUESTION, 5)
    assert vector_indexes(empty_database, table) == indexes

    run("migrate", "--yes")
    run("retire", "--yes")

    application.open(page["after"], new_model)
    found(application, new_model, texts)
    status = run("status")
    assert (status["phase"], status["rows"], status["pending"]) == ("retired", DOCUMENTS, 0)
    assert vector_indexes(empty_database, table) == indexes


def test_a_memory_that_mem0_updates_is_found_at_once(
    start: Callable[[str], Application],
    command: Callable[[str], Command],
    documents: dict[int, str],
    old_model: Encoder,
    new_model: Encoder,
):
    page, application = PAGE["mem0_store"], start("mem0_store")
    run = command(page["settings"])
    application.open(page["create"], old_model)
    application.add(documents)
    run("migrate", "--yes")
    application.open(page["after"], new_model)

    application.update(7, CHANGED)

    assert run("status")["pending"] == 0, "mem0 writes the vector, and the text in a statement after it"
    assert application.search("cleaning lights by the sea", 1) == [CHANGED]


def test_a_life_by_dagster(
    start: Callable[[str], Application],
    command: Callable[[str], Command],
    documents: dict[int, str],
    old_model: Encoder,
    new_model: Encoder,
    dagster_database_url: str,
):
    page, application = PAGE["llama_index_store"], start("llama_index_store")
    run = command(page["settings"] + f"DAGSTER_DATABASE_URL={dagster_database_url}\n")
    application.open(page["create"], old_model)
    application.add(documents)

    migration = migrate_through_dagster(load_settings())

    assert migration.partitions == 1
    application.open(page["after"], new_model)
    application.add({DOCUMENTS + 1: NEWS})
    application.update(7, CHANGED)
    texts = documents | {DOCUMENTS + 1: NEWS, 7: CHANGED}
    found(application, new_model, texts)
    status = run("status")
    assert (status["phase"], status["rows"], status["pending"]) == ("swapped", DOCUMENTS + 1, 0)


def found(application: Application, model: Encoder, texts: dict[int, str]) -> None:
    """The application finds what is nearest by the model, and what it wrote after the swap."""
    assert application.search(QUESTION, 5) == nearest(model, texts.values(), QUESTION, 5)
    assert application.search("a pet that eats flowers", 1) == [NEWS]
    assert application.search("cleaning lights by the sea", 1) == [CHANGED]


def nearest(model: Encoder, texts, query: str, k: int) -> list[str]:
    """The texts nearest to the query by the model, every one compared."""
    texts = tuple(texts)
    order = np.argsort(-(vectors_of(model, texts) @ vectors_of(model, (query,))[0]), kind="stable")
    return [texts[position] for position in order[:k]]


@lru_cache
def vectors_of(model: Encoder, texts: tuple[str, ...]) -> np.ndarray:
    """The model's vectors; neither of the two models treats queries in another way."""
    return model.encode(model.tokenize(texts))


def vector_indexes(database: Database, table: str) -> list[str]:
    """Names of the indexes by which a search of the embedding column finds its neighbours."""
    return [
        row[0]
        for row in execute(
            database,
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
            "WHERE i.indrelid = CAST(:table AS regclass) AND m.amname IN ('hnsw', 'ivfflat') AND a.attname = :column "
            "ORDER BY 1",
            table=table,
            column=load_settings().target_embedding_column,
        )
    ]
