"""Searching right before, during and after the swap."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
from psycopg2.errors import LockNotAvailable, QueryCanceled
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import bge_pipeline
from bge_pipeline.database.connection import Database
from bge_pipeline.database.notes import ColumnNote, note_statement
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, EmbeddingSpaceMismatch, TargetTableError
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.quality.server_search import missing_effort
from bge_pipeline.search import Retriever
from bge_pipeline.settings import Settings
from bge_pipeline_tests.partitions import divide
from bge_pipeline_tests.support import SEGMENTS, application, execute, scalar

pytestmark = pytest.mark.pgvector

QUERY = "remove an item from a list"
Statements = Callable[[], AbstractContextManager[list[str]]]


class WithoutSpace:
    """An application's own encoder, which knows no embedding space."""

    def __init__(self, encoder: HashingEncoder) -> None:
        self._encoder = encoder

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        return self._encoder.encode(self._encoder.tokenize(texts))


def exact_ids(database: Database, encoder: HashingEncoder, query: str, k: int, column: str = "embedding") -> list[int]:
    """The nearest rows as NumPy finds them."""
    rows = execute(
        database, f"SELECT id, CAST({column} AS real[]) FROM segments WHERE {column} IS NOT NULL ORDER BY id"
    )
    vectors = np.array([row[1] for row in rows], np.float32)
    order = np.argsort(-(vectors @ encoder.encode(encoder.tokenize([query]))[0]), kind="stable")
    return [rows[position][0] for position in order[:k]]


def ids(retriever: Retriever, query: str = QUERY, **options: object) -> list[int]:
    return [result.id for result in retriever.search(query, **options).results]


def test_the_nearest_rows_come_back_best_first_with_text_and_similarity(
    database: Database, retriever: Retriever, old_encoder: HashingEncoder
) -> None:
    response = retriever.search(QUERY, top_k=5)
    assert [result.id for result in response.results] == exact_ids(database, old_encoder, QUERY, 5)
    assert [result.dense_rank for result in response.results] == [1, 2, 3, 4, 5]
    first = response.results[0]
    assert first.text == execute(database, "SELECT text FROM segments WHERE id = :id", id=first.id)[0][0]
    assert first.score == pytest.approx(1 - first.distance)
    assert first.lexical_rank is None
    assert response.seconds.total >= response.seconds.database > 0


def test_each_phase_is_searched_with_the_encoder_of_its_column(
    database: Database,
    migration: Migration,
    settings: Settings,
    service: EmbeddingsService,
    retriever: Retriever,
    old_encoder: HashingEncoder,
    run_migration: Callable[[], None],
) -> None:
    before = exact_ids(database, old_encoder, QUERY, 10)
    assert ids(retriever, top_k=10) == before
    expand(migration, service.space)
    assert ids(retriever, top_k=10) == before
    run_migration()
    after = exact_ids(database, service.encoder, QUERY, 10)
    assert ids(retriever, top_k=10) == after
    assert ids(Retriever(database, settings, service), top_k=10) == after, "a process that starts after the swap"
    rollback(migration)
    assert ids(retriever, top_k=10) == before
    run_migration()
    retire(migration)
    assert ids(retriever, top_k=10) == after


def test_a_swap_between_two_searches_costs_one_more_look_and_no_wrong_answer(
    retriever: Retriever, run_migration: Callable[[], None], statements: Statements
) -> None:
    retriever.search(QUERY)
    run_migration()
    with statements() as sent:
        retriever.search(QUERY)
    assert len(sent) > 1
    with statements() as sent:
        retriever.search(QUERY)
    assert len(sent) == 1


def test_a_swap_to_a_model_of_equal_dimensions_is_noticed_too(
    database: Database,
    make_settings: Callable[..., Settings],
    run_migration: Callable[[], None],
    service: EmbeddingsService,
) -> None:
    run_migration()
    other = HashingEncoder(384, seed=7)
    retriever = Retriever(database, make_settings(), service, query_encoder=other)
    before = ids(retriever)
    vectors = other.encode(
        other.tokenize([row[0] for row in execute(database, "SELECT text FROM segments ORDER BY id")])
    )
    note = ColumnNote("current", other.space)
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE segments RENAME embedding TO before"))
        connection.execute(text("ALTER TABLE segments ADD embedding vector(384)"))
        connection.execute(
            text("UPDATE segments SET embedding = CAST(:v AS vector) WHERE id = :id"),
            [{"v": str(vector.tolist()), "id": number} for number, vector in enumerate(vectors, start=1)],
        )
        connection.execute(note_statement(SEGMENTS, "embedding", note))
    assert ids(retriever) == exact_ids(database, other, QUERY, 20)
    assert ids(retriever) != before


def test_searches_while_columns_are_exchanged_are_all_right(
    database: Database,
    migration: Migration,
    service: EmbeddingsService,
    retriever: Retriever,
    old_encoder: HashingEncoder,
    run_migration: Callable[[], None],
) -> None:
    old = exact_ids(database, old_encoder, QUERY, 10)
    new_answers: list[list[int]] = []
    problems: list[Exception] = []
    done = threading.Event()

    def keep_searching() -> None:
        try:
            while not done.is_set():
                new_answers.append(ids(retriever, top_k=10))
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            problems.append(error)

    threads = [threading.Thread(target=keep_searching) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        run_migration()
        new = exact_ids(database, service.encoder, QUERY, 10)
        rollback(migration)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert {tuple(answer) for answer in new_answers} <= {tuple(old), tuple(new)}


def test_the_wrong_model_is_refused_before_the_swap_and_right_after_it(
    database: Database, settings: Settings, service: EmbeddingsService, run_migration: Callable[[], None]
) -> None:
    retriever = Retriever(database, settings, service)
    with pytest.raises(EmbeddingSpaceMismatch, match="dimensions: 1536 != 384"):
        retriever.search(QUERY)
    with pytest.raises(EmbeddingSpaceMismatch):
        retriever.check()
    run_migration()
    assert ids(retriever), "the same object, without a restart"
    assert retriever.check().space == service.space


def test_the_old_encoder_alone_is_refused_after_the_swap(
    database: Database,
    migration: Migration,
    settings: Settings,
    old_encoder: HashingEncoder,
    run_migration: Callable[[], None],
) -> None:
    old_service = EmbeddingsService(old_encoder, settings)
    retriever = Retriever(database, settings, old_service)
    assert ids(retriever)
    run_migration()
    with pytest.raises(EmbeddingSpaceMismatch, match="nothing was searched"):
        retriever.search(QUERY)
    rollback(migration)
    assert ids(retriever)


def test_a_column_without_a_recorded_space_wants_an_encoder_of_the_callers(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    old_encoder: HashingEncoder,
    run_migration: Callable[[], None],
) -> None:
    execute(database, "COMMENT ON COLUMN segments.embedding IS NULL")
    with pytest.raises(EmbeddingSpaceMismatch, match="no embedding space recorded"):
        Retriever(database, settings, service).search(QUERY)
    retriever = Retriever(database, settings, service, query_encoder=WithoutSpace(old_encoder))
    assert ids(retriever) == exact_ids(database, old_encoder, QUERY, 20)
    with pytest.raises(EmbeddingSpaceMismatch, match="1536 dimensions, and the encoder made 8"):
        Retriever(database, settings, query_encoder=WithoutSpace(HashingEncoder(8))).search(QUERY)
    run_migration()
    assert ids(retriever) == exact_ids(database, service.encoder, QUERY, 20)


def test_lexical_search_needs_no_model(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddingsService, "init_from_env", lambda *_: pytest.fail("a model was loaded"))
    assert ids(Retriever(database, settings), "list", mode="lexical")


def test_the_environment_is_enough(
    database: Database, settings: Settings, run_migration: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_migration()
    monkeypatch.setattr("bge_pipeline.search.retriever.settings_from_env", lambda: settings)
    retriever = bge_pipeline.Retriever.from_env()
    try:
        assert ids(retriever) == ids(Retriever(database, settings))
    finally:
        EmbeddingsService.init_from_env(settings).shutdown()
        retriever.close()


def test_columns_asked_for_come_back_with_python_types(retriever: Retriever, database: Database) -> None:
    result = retriever.search(QUERY, columns=["speaker_label", "metadata", "start_sec"], top_k=1).results[0]
    (row,) = execute(database, "SELECT speaker_label, metadata, start_sec FROM segments WHERE id = :id", id=result.id)
    assert result.columns == dict(row._mapping)
    with pytest.raises(ConfigurationError, match="got 'nope'; its columns are id, "):
        retriever.search(QUERY, columns=["nope"])


def test_a_column_that_was_added_since_the_first_search_is_found(retriever: Retriever, database: Database) -> None:
    assert ids(retriever)
    execute(database, "ALTER TABLE segments ADD COLUMN language text DEFAULT 'en'")
    assert {row.columns["language"] for row in retriever.search(QUERY, columns=["language"]).results} == {"en"}


def test_a_blank_query_finds_nothing_and_asks_nobody(retriever: Retriever, statements: Statements) -> None:
    with statements() as sent:
        for query in ("", " \t\n", "\0"):
            response = retriever.search(query)
            assert response.results == ()
            assert response.explanation == "the query has no words to look for"
    assert sent == []


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_query_is_never_sql(database: Database, retriever: Retriever, mode: str) -> None:
    for query in (
        "'; DROP TABLE segments; --",
        "\\'; SELECT pg_sleep(10); --",
        '"; DELETE FROM segments; --"',
        "%(where)s %s :query {table}",
        "' OR 1=1 -- list",
        "\\",
        "'' | !'' & <-> :*",
        "http://host/it's/a\\path?q='x'",
    ):
        retriever.search(query, mode=mode, where=retriever.table.c.speaker_label != query)
    assert scalar(database, "SELECT count(*) FROM segments") == 300


def test_rows_without_a_vector_are_not_found_by_vectors(database: Database, retriever: Retriever) -> None:
    execute(database, "UPDATE segments SET embedding = NULL WHERE id > 5")
    found = retriever.search(QUERY, top_k=20).results
    assert len(found) == 5
    assert all(result.distance is not None for result in found)


def test_a_vector_of_zeros_is_never_found_first(database: Database, retriever: Retriever) -> None:
    execute(database, "DELETE FROM segments WHERE id > 5")
    execute(database, "UPDATE segments SET embedding = array_fill(0, ARRAY[1536])::vector WHERE id = 3")
    found = retriever.search(QUERY, top_k=20, where=retriever.table.c.id > 0).results
    assert {result.id for result in found} == {1, 2, 4, 5}
    assert all(np.isfinite(result.score) for result in found)


@pytest.mark.parametrize("query", ["-Wall", "caf\udce9 list", "-only -negated"])
def test_by_meaning_every_text_is_searched_as_it_stands(retriever: Retriever, query: str) -> None:
    assert len(ids(retriever, query, top_k=5)) == 5


def test_a_row_with_a_vector_and_no_text_is_found_with_an_empty_one(database: Database, retriever: Retriever) -> None:
    execute(database, "ALTER TABLE segments ALTER COLUMN text DROP NOT NULL")
    execute(database, "DELETE FROM segments WHERE id > 5")
    execute(database, "UPDATE segments SET text = NULL WHERE id = 3")
    assert {result.id: result.text for result in retriever.search(QUERY, top_k=20).results}[3] == ""


def test_wrong_arguments_are_named(retriever: Retriever) -> None:
    with pytest.raises(ConfigurationError, match="mode: expected dense, lexical, hybrid, got 'sparse'"):
        retriever.search(QUERY, mode="sparse")
    with pytest.raises(ConfigurationError, match="rerank: expected auto, always, never, got 'maybe'"):
        retriever.search(QUERY, rerank="maybe")
    with pytest.raises(ConfigurationError, match="top_k: expected at least 1, got 0"):
        retriever.search(QUERY, top_k=0)


def test_a_table_that_is_not_there_is_named(database: Database, make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(TargetTableError, match=r'"public"\."nope" does not exist'):
        Retriever(database, make_settings(target_table="nope")).search(QUERY)
    with pytest.raises(TargetTableError, match="expected a vector or halfvec column 'text'"):
        Retriever(database, make_settings(), column="text").search(QUERY)


def test_a_table_dropped_and_made_again_is_found_again(database: Database, retriever: Retriever) -> None:
    retriever.search(QUERY)
    execute(database, "ALTER TABLE segments RENAME TO segments_before")
    with pytest.raises(TargetTableError):
        retriever.search(QUERY)
    execute(database, "ALTER TABLE segments_before RENAME TO segments")
    assert ids(retriever)


def test_the_explanation_says_what_was_searched_and_how(retriever: Retriever) -> None:
    explanation = retriever.search(QUERY, mode="hybrid", explain=True).explanation
    assert "hybrid search, 20 candidates" in explanation
    assert "stand-in for" in explanation
    assert "(ivfflat, vector, cosine, lists=1); ivfflat.probes=1" in explanation
    assert "no text index" in explanation
    assert "not reranked: ENABLE_RERANKER is off" in explanation
    assert "CTE nearest" in explanation, "the server's plan"
    assert max(map(len, explanation.splitlines())) < 700, "vectors are shortened"
    assert "CTE" not in retriever.search(QUERY).explanation


def test_parameters_last_for_one_search(
    database: Database, make_settings: Callable[..., Settings], old_encoder: HashingEncoder
) -> None:
    tuned = Retriever(database, make_settings(search_probes=7), query_encoder=old_encoder)
    execute(database, "CREATE INDEX ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 9)")
    execute(database, "DROP INDEX segments_embedding_idx")
    assert "ivfflat.probes=7" in tuned.search(QUERY).explanation
    with database.engine.connect() as connection:
        assert connection.execute(text("SHOW ivfflat.probes")).scalar_one() == "1"
        assert connection.execute(text("SHOW transaction_read_only")).scalar_one() == "off"


def test_an_effort_that_was_measured_on_another_index_is_not_searched_with(
    database: Database, retriever: Retriever, settings: Settings
) -> None:
    def note(**effort: object) -> None:
        with database.transaction() as connection:
            noted = replace(retriever.check().column.note, **effort)
            connection.execute(note_statement(SEGMENTS, "embedding", noted))

    def rebuilt(definition: str) -> str:
        execute(database, "DROP INDEX segments_embedding_idx")
        execute(database, f"CREATE INDEX segments_embedding_idx ON segments USING {definition}")
        return retriever.search(QUERY).explanation

    note(search_effort=3, search_effort_index="ivfflat, lists=9")
    assert "ivfflat.probes=3," in rebuilt("ivfflat (embedding vector_cosine_ops) WITH (lists = 9)")
    assert "ivfflat.probes=10," in rebuilt("ivfflat (embedding vector_cosine_ops) WITH (lists = 25)")
    with database.autocommit() as connection:
        assert missing_effort(connection, settings, "embedding").wanted == 10
    assert "hnsw.ef_search=100" in rebuilt("hnsw (embedding vector_cosine_ops)")
    note(search_effort=150, search_effort_index=None)
    assert "hnsw.ef_search=150" in retriever.search(QUERY).explanation, "a note from before kinds were noted"


def test_an_index_that_a_partition_has_by_itself_is_seen_to_come_and_go(
    database: Database, retriever: Retriever
) -> None:
    divide(database, "hash", index=None)
    assert "no ANN index" in retriever.search(QUERY).explanation
    execute(database, "CREATE INDEX alone ON part_1 USING hnsw (embedding vector_cosine_ops)")
    assert "index: alone (hnsw" in retriever.search(QUERY).explanation
    execute(database, "DROP INDEX alone")
    assert "no ANN index" in retriever.search(QUERY).explanation


@pytest.mark.parametrize(
    ("limit", "ended_by"), [("lock_timeout", LockNotAvailable), ("statement_timeout", QueryCanceled)]
)
def test_a_search_waits_no_longer_than_the_role_may(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, limit: str, ended_by: type[Exception]
) -> None:
    execute(database, f"ALTER DATABASE {database.url.database} SET {limit} = '300ms'")
    monkeypatch.setattr("bge_pipeline.search.retriever.settings_from_env", lambda: settings)
    retriever = bge_pipeline.Retriever.from_env()
    assert ids(retriever, "list", mode="lexical")
    with ThreadPoolExecutor(1) as thread, application(database) as other:
        other.exec_driver_sql("LOCK TABLE segments")
        error = thread.submit(retriever.search, "list", mode="lexical").exception(timeout=20)
    retriever.close()
    assert isinstance(error, DBAPIError)
    assert isinstance(error.orig, ended_by)
