"""SegmentsDatabase and its sessions: whatever fails, it is rolled back and raised, and the next call works."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline import SegmentsDatabase
from bge_pipeline.database.connection import Database
from bge_pipeline.errors import EmbeddingSpaceMismatch, TargetTableError
from bge_pipeline.settings import Settings

pytestmark = pytest.mark.pgvector

VIDEO = "a-new-video"


@pytest.fixture
def segments_database(settings: Settings) -> Iterator[SegmentsDatabase]:
    with SegmentsDatabase(settings=settings) as opened:
        opened.upsert_source(VIDEO, "A new video")
        yield opened


def segment(start: float, content: str = "words", **more: Any) -> dict[str, Any]:
    return {"start_sec": start, "end_sec": start + 5, "text": content, **more}


def stored(database: Database, columns: str = "*") -> list[Any]:
    with database.autocommit() as connection:
        statement = f"SELECT {columns} FROM segments WHERE video_id = :video ORDER BY start_sec"
        return list(connection.execute(text(statement), {"video": VIDEO}).all())


def terminate_others(database: Database) -> None:
    """Close every other backend of this database, as a restart or a firewall does."""
    with database.autocommit() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )


def status(segments_database: SegmentsDatabase) -> int:
    """Transaction status of this thread's connection as the last call left it."""
    connection = segments_database._connections._own.connection
    assert connection is not None
    assert not connection.closed
    return int(connection.get_transaction_status())


FAILURES: dict[str, tuple[Callable[[SegmentsDatabase], object], type[Exception]]] = {
    "a text that is missing": (
        lambda d: d.batch_insert_segments([segment(0), {"start": 5, "end": 6}], VIDEO),
        TargetTableError,
    ),
    "a metadata column that is no object": (
        lambda d: d.batch_insert_segments([segment(0), segment(5, metadata=float("nan"))], VIDEO),
        psycopg2.Error,
    ),
    "a start that is no number": (
        lambda d: d.batch_insert_segments([segment(0), {**segment(5), "start_sec": "soon"}], VIDEO),
        psycopg2.Error,
    ),
    "a NUL in a text": (lambda d: d.batch_insert_segments([segment(0), segment(5, "a\0b")], VIDEO), ValueError),
    "an embedding of other dimensions": (
        lambda d: d.batch_insert_segments([segment(0), segment(5, embedding=[0.5] * 384)], VIDEO),
        EmbeddingSpaceMismatch,
    ),
    "an embedding that is not a number": (
        lambda d: d.batch_insert_segments([segment(0), segment(5, embedding=[float("nan")] * 1536)], VIDEO),
        psycopg2.Error,
    ),
    "a video without a source": (lambda d: d.batch_insert_segments([segment(0)], "unknown"), TargetTableError),
    "a column that sources does not have": (lambda d: d.upsert_source("other", "t", colour="red"), psycopg2.Error),
    "a title that is missing": (lambda d: d.upsert_source("other", None), psycopg2.Error),  # type: ignore[arg-type]
    "an id of a wrong type": (lambda d: d.check_video_exists(7), psycopg2.Error),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_call_raises_leaves_nothing_behind_and_the_next_call_works(
    failure: str, segments_database: SegmentsDatabase, database: Database
) -> None:
    call, error = FAILURES[failure]
    connection = segments_database.get_connection()

    with pytest.raises(error):
        call(segments_database)

    assert status(segments_database) == TRANSACTION_STATUS_IDLE
    assert stored(database) == []
    assert segments_database.batch_insert_segments([segment(0)], VIDEO) == 1
    assert segments_database.check_video_exists(VIDEO)[1] == 1
    assert segments_database.get_connection() is connection


def test_a_transaction_that_the_caller_left_failed_is_rolled_back(segments_database: SegmentsDatabase) -> None:
    connection = segments_database.get_connection()
    with pytest.raises(psycopg2.Error), connection.cursor() as cursor:
        cursor.execute("SELECT no_such_column FROM segments")
    assert connection.get_transaction_status() == TRANSACTION_STATUS_INERROR

    assert segments_database.get_cached_voice_embeddings(VIDEO) == {}
    assert segments_database.get_connection() is connection
    assert connection.get_transaction_status() == TRANSACTION_STATUS_IDLE


def test_a_connection_commits_at_the_end_of_its_block_and_rolls_back_on_an_error(
    segments_database: SegmentsDatabase,
) -> None:
    add = "INSERT INTO sources (video_id, title) VALUES (%s, 't')"
    with segments_database.get_connection() as connection, connection.cursor() as cursor:
        cursor.execute(add, ["kept"])

    def fail_after_inserting() -> None:
        with segments_database.get_connection() as connection:
            connection.cursor().execute(add, ["lost"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_inserting()

    assert segments_database.check_video_exists("kept")[0] is not None
    assert segments_database.check_video_exists("lost") == (None, 0)


def test_a_method_inside_a_block_refuses_to_commit_half_of_it(segments_database: SegmentsDatabase) -> None:
    def call_inside_a_block() -> None:
        with segments_database.get_connection() as connection:
            connection.cursor().execute("INSERT INTO sources (video_id, title) VALUES ('half', 't')")
            segments_database.upsert_source("other", "t")

    with pytest.raises(psycopg2.ProgrammingError):
        call_inside_a_block()

    assert segments_database.check_video_exists("half") == (None, 0)


def test_an_open_transaction_of_the_caller_is_left_to_it(segments_database: SegmentsDatabase) -> None:
    connection = segments_database.get_connection()
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO sources (video_id, title) VALUES ('mine', 't')")
    assert segments_database.get_connection() is connection
    connection.rollback()

    assert segments_database.check_video_exists("mine") == (None, 0)


def test_autocommit_that_the_caller_chose_stays(segments_database: SegmentsDatabase) -> None:
    segments_database.get_connection().autocommit = True

    assert segments_database.get_connection().autocommit is True


def test_a_backend_that_was_terminated_between_calls_is_not_noticed_by_the_caller(
    segments_database: SegmentsDatabase, database: Database
) -> None:
    before = segments_database.get_connection()
    terminate_others(database)

    assert segments_database.check_video_exists(VIDEO)[0] is not None

    terminate_others(database)
    assert segments_database.batch_insert_segments([segment(0)], VIDEO) == 1
    assert before.closed


def test_a_backend_that_is_terminated_in_a_transaction_is_an_error_and_then_replaced(
    segments_database: SegmentsDatabase, database: Database
) -> None:
    def lose_the_backend() -> None:
        with segments_database.get_connection() as connection:
            connection.cursor().execute("INSERT INTO sources (video_id, title) VALUES ('lost', 't')")
            terminate_others(database)
            connection.cursor().execute("SELECT 1")

    with pytest.raises(psycopg2.OperationalError):
        lose_the_backend()

    assert segments_database.check_video_exists("lost") == (None, 0)


def test_a_server_that_cannot_be_reached_is_an_error_without_the_password(settings: Settings) -> None:
    database = SegmentsDatabase("postgresql://reader:geheim@127.0.0.1:1/nothing", settings)

    with pytest.raises(psycopg2.OperationalError) as caught:
        database.check_video_exists(VIDEO)

    assert "geheim" not in str(caught.value)


def test_every_thread_has_a_connection_of_its_own_and_a_failure_in_one_leaves_the_others_alone(
    segments_database: SegmentsDatabase, database: Database
) -> None:
    start = threading.Barrier(4)
    connections = set()

    def work(thread: int) -> int:
        start.wait(timeout=30)
        connections.add(segments_database.get_connection())
        written = 0
        for number in range(10):
            try:
                first = segment(100 * thread + 10 * number)
                second = segment(100 * thread + 10 * number + 5, "a\0b" if number % 2 else "words")
                written += segments_database.batch_insert_segments([first, second], VIDEO)
            except ValueError:
                assert segments_database.check_video_exists(VIDEO)[0] is not None
        return written

    with ThreadPoolExecutor(4) as pool:
        written = sum(pool.map(work, range(4)))

    assert len(connections) == 4
    assert written == len(stored(database)) == 4 * 5 * 2


def test_close_ends_the_connections_of_all_threads_and_a_later_call_opens_a_new_one(
    segments_database: SegmentsDatabase,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(segments_database.get_connection).result()
        ours = segments_database.get_connection()
        segments_database.close()

        assert ours.closed
        assert theirs.closed
        assert segments_database.check_video_exists(VIDEO)[0] is not None


def test_a_forked_process_opens_its_own_connection(settings: Settings) -> None:
    script = """
import os
from bge_pipeline import SegmentsDatabase
database = SegmentsDatabase(os.environ["URL"])
parent = database.get_connection().get_backend_pid()
if (child := os.fork()) == 0:
    os._exit(0 if database.get_connection().get_backend_pid() != parent else 1)
assert os.waitpid(child, 0)[1] == 0
assert database.get_connection().get_backend_pid() == parent
"""
    assert settings.database_url is not None
    subprocess.run(
        [sys.executable, "-c", script],
        env={"URL": settings.database_url.get_secret_value()},
        check=True,
        timeout=60,
    )


def test_a_forked_process_that_closes_leaves_its_parent_alone(settings: Settings) -> None:
    script = """
import os
from sqlalchemy import text
from bge_pipeline import SegmentsDatabase
database = SegmentsDatabase(os.environ["URL"])
pid = text("SELECT pg_backend_pid()")
parent = database.get_connection()
with database.session_scope() as session:
    pooled = session.execute(pid).scalar_one()
for closes_first in (True, False):
    if (child := os.fork()) == 0:
        if closes_first:
            database.close()
        with database.session_scope() as session:
            if session.execute(pid).scalar_one() == pooled:
                os._exit(1)
        database.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert database.get_connection() is parent
with database.session_scope() as session:
    assert session.execute(pid).scalar_one() == pooled
"""
    assert settings.database_url is not None
    environment = {"URL": settings.database_url.get_secret_value()}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)


def test_inserting_twice_changes_nothing(segments_database: SegmentsDatabase, database: Database) -> None:
    given = [
        segment(0, embedding=np.full(1536, 0.5)),
        segment(5, speaker_label="guest"),
        segment(10, metadata={"a": 1}),
    ]
    assert segments_database.batch_insert_segments(given, VIDEO) == 3
    before = stored(database)

    assert segments_database.batch_insert_segments(given, VIDEO) == 3

    assert stored(database) == before
    assert [(row.speaker_label, row.metadata) for row in before] == [(None, {}), ("guest", {}), (None, {"a": 1})]


def test_the_last_of_two_equal_segments_counts(segments_database: SegmentsDatabase, database: Database) -> None:
    assert segments_database.batch_insert_segments([segment(0, "first"), segment(0, "last")], VIDEO) == 1
    assert [row.text for row in stored(database)] == ["last"]


def test_a_value_that_is_not_given_stays_but_no_text_keeps_the_vector_of_another(
    segments_database: SegmentsDatabase, database: Database
) -> None:
    vector, voice = [0.25] * 1536, [1.0, 2.0]
    segments_database.batch_insert_segments(
        [segment(0, "same", embedding=vector, voice_embedding=voice), segment(5, "old", embedding=vector)], VIDEO
    )

    segments_database.batch_insert_segments([segment(0, "same"), segment(5, "new")], VIDEO)

    rows = stored(database, "text, embedding IS NULL AS empty, voice_embedding")
    assert [tuple(row) for row in rows] == [("same", False, voice), ("new", True, None)]


@dataclass
class Spoken:
    start: float
    end: float
    text: str
    voice_embedding: Any = None
    words: tuple[str, ...] = ()


def test_segments_may_be_objects_with_start_and_end_and_numbers_of_numpy(
    segments_database: SegmentsDatabase,
) -> None:
    spoken = [
        Spoken(np.float64(0.5), np.float64(2.5), "one", np.array([0.5, -1.0], np.float32), ("one",)),  # type: ignore[arg-type]
        Spoken(2.5, 4, "two"),
    ]
    assert segments_database.batch_insert_segments(spoken, VIDEO) == 2

    assert segments_database.check_video_exists(VIDEO)[1] == 2
    assert segments_database.get_cached_voice_embeddings(VIDEO) == {(0.5, 2.5): [0.5, -1.0]}


def test_voice_vectors_older_than_wanted_are_left_out(segments_database: SegmentsDatabase, database: Database) -> None:
    segments_database.batch_insert_segments([segment(0, voice_embedding=[1]), segment(5, voice_embedding=[2])], VIDEO)
    with database.transaction() as connection:
        connection.execute(text("UPDATE segments SET created_at = now() - interval '40 days' WHERE start_sec = 5"))

    assert segments_database.get_cached_voice_embeddings(VIDEO, max_age_days=30) == {(0.0, 5.0): [1]}
    assert len(segments_database.get_cached_voice_embeddings(VIDEO)) == 2


def test_a_mismatch_names_the_column_its_dimensions_and_its_model(segments_database: SegmentsDatabase) -> None:
    with pytest.raises(EmbeddingSpaceMismatch) as caught:
        segments_database.batch_insert_segments([segment(0, embedding=[0.5] * 384)], VIDEO)

    assert "1536 dimensions" in caught.value.message
    assert "gte-Qwen2" in caught.value.message
    assert "384" in caught.value.message


def test_a_table_without_the_embedding_column_is_named_not_ignored(make_settings: Callable[..., Settings]) -> None:
    with SegmentsDatabase(settings=make_settings(target_embedding_column="vector")) as segments_database:
        segments_database.upsert_source(VIDEO, "t")
        with pytest.raises(TargetTableError, match="no column 'vector'"):
            segments_database.batch_insert_segments([segment(0)], VIDEO)


def test_upserting_a_source_keeps_its_id_and_changes_its_title(
    segments_database: SegmentsDatabase, database: Database
) -> None:
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE sources ADD COLUMN channel text, ADD COLUMN details jsonb"))
    first = segments_database.upsert_source(VIDEO, "Old", channel="news", details={"likes": 3})

    assert segments_database.upsert_source(VIDEO, "New", channel=None) == first
    with database.autocommit() as connection:
        row = connection.execute(text("SELECT * FROM sources WHERE id = :id"), {"id": first}).one()
    assert (row.title, row.channel, row.details) == ("New", "news", {"likes": 3})


def test_a_session_commits_at_the_end_and_rolls_back_on_an_error(
    segments_database: SegmentsDatabase, database: Database
) -> None:
    with segments_database.session_scope() as session:
        session.execute(text("INSERT INTO sources (video_id, title) VALUES ('kept', 't')"))

    def insert_twice() -> None:
        with segments_database.session_scope() as session:
            session.execute(text("INSERT INTO sources (video_id, title) VALUES ('lost', 't')"))
            session.execute(text("INSERT INTO sources (video_id, title) VALUES ('lost', 't')"))

    with pytest.raises(DBAPIError):
        insert_twice()

    with segments_database.session_scope() as session:
        found = session.execute(text("SELECT video_id FROM sources WHERE video_id IN ('kept', 'lost')")).scalars().all()
    assert found == ["kept"]


def test_a_session_recovers_from_a_terminated_backend(segments_database: SegmentsDatabase, database: Database) -> None:
    for _ in range(2):
        with segments_database.session_scope() as session:
            assert session.execute(text("SELECT count(*) FROM sources")).scalar_one() > 0
        terminate_others(database)


def test_sessions_of_many_threads_do_not_meet(segments_database: SegmentsDatabase) -> None:
    start = threading.Barrier(4)

    def work(thread: int) -> None:
        start.wait(timeout=30)
        with segments_database.session_scope() as session:
            session.execute(text("INSERT INTO sources (video_id, title) VALUES (:v, 't')"), {"v": f"thread-{thread}"})
            if thread == 0:
                session.rollback()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert [segments_database.check_video_exists(f"thread-{n}")[0] is None for n in range(4)] == [True] + [False] * 3
