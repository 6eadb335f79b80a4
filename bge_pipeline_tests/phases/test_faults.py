"""Faults at the worst moment: an answer to COMMIT that never comes, a victim of a deadlock, no space for an index, odd texts."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database import locks
from bge_pipeline.errors import DatabaseUnavailable, IndexBuildFailed, PhaseError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import ENCODER, Wrapped, application, execute, fill, scalar, swap, wrong_vectors

pytestmark = pytest.mark.pgvector


@contextmanager
def answer_lost(*, after_commit: bool):
    """The server ends the session that exchanges the columns, as it commits: before, or after but before it has answered."""
    exchanging = set()

    def note(connection, _cursor, statement, *_):
        if "RENAME COLUMN" in statement:
            exchanging.add(connection.connection.dbapi_connection)

    def lose(connection):
        raw = connection.connection.dbapi_connection
        if raw not in exchanging:
            return
        if after_commit:
            raw.commit()
        with raw.cursor() as cursor, pytest.raises(Exception, match=r"terminating connection|closed the connection"):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    event.listen(Engine, "before_cursor_execute", note)
    event.listen(Engine, "commit", lose)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        event.remove(Engine, "commit", lose)


@pytest.mark.parametrize("after_commit", [False, True], ids=["it was not committed", "it was committed"])
def test_the_outcome_of_an_exchange_whose_answer_was_lost_is_found_out(database, migration, after_commit):
    fill(migration)
    with answer_lost(after_commit=after_commit), pytest.raises(DatabaseUnavailable) as refused:
        swap(migration)
    assert "run the same command again" in refused.value.next_step
    assert read_status(migration).phase == ("swapped" if after_commit else "backfilled")

    assert swap(migration).exchanged is not after_commit
    assert read_status(migration).phase == "swapped"
    assert wrong_vectors(database, ENCODER, "embedding") == []


@pytest.mark.parametrize("victims", [1, 2])
def test_an_exchange_that_is_the_victim_of_a_deadlock_is_tried_again(database, migration, victims):
    fill(migration)
    execute(database, "CREATE SEQUENCE renames")
    execute(
        database,
        "CREATE FUNCTION deadlock() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF current_query() LIKE '%RENAME COLUMN%' AND nextval('renames') <= " + str(victims) + " THEN "
        "RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END IF; END $$",
    )
    execute(database, "CREATE EVENT TRIGGER deadlocks ON ddl_command_start EXECUTE FUNCTION deadlock()")
    assert swap(migration).exchanged
    assert scalar(database, "SELECT last_value FROM renames") > victims


def test_an_application_that_has_read_and_waits_to_write_is_not_the_victim_of_the_exchange(database, make_settings):
    """It holds what the exchange waits for, and waits for what the exchange holds: it must be the exchange that gives way."""
    settings = make_settings(lock_timeout_ms=10_000, lock_max_attempts=2, swap_max_writer_pause_ms=10_000)
    fill(Migration(database, settings))
    waiting = threading.Event()
    outcome = []

    def write(connection):
        waiting.set()
        try:
            connection.exec_driver_sql("UPDATE segments SET speaker_label = 'me' WHERE id = 1")
            connection.commit()
            outcome.append("written")
        except DBAPIError as error:
            outcome.append(str(error.orig))

    def note(_connection, _cursor, statement, *_):
        if "SHARE ROW EXCLUSIVE" in statement and not threads:
            connection.exec_driver_sql("SELECT count(*) FROM segments")
            threads.append(threading.Thread(target=write, args=(connection,)))
            threads[0].start()
            waiting.wait()
            time.sleep(0.05)  # so that its wait is the first to be looked at

    threads = []
    event.listen(Engine, "after_cursor_execute", note)
    try:
        with application(database) as connection:
            assert swap(Migration(database, settings)).exchanged
            threads[0].join()
    finally:
        event.remove(Engine, "after_cursor_execute", note)
    assert outcome == ["written"]
    assert scalar(database, "SELECT speaker_label FROM segments WHERE id = 1") == "me"


def test_an_index_for_which_there_is_no_space_leaves_nothing_and_is_built_when_there_is(database, migration):
    fill(migration)
    execute(
        database,
        "CREATE FUNCTION full_disk() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF current_query() LIKE '%ivfflat%' THEN RAISE EXCEPTION 'could not extend file: No space left on device' "
        "USING ERRCODE = 'disk_full'; END IF; END $$",
    )
    execute(database, "CREATE EVENT TRIGGER full_disk ON ddl_command_start EXECUTE FUNCTION full_disk()")
    with pytest.raises(IndexBuildFailed, match="No space left on device") as refused:
        swap(migration)
    assert "free space" in refused.value.next_step
    assert read_status(migration).dimensions == 1536
    execute(database, "DROP EVENT TRIGGER full_disk")
    assert swap(migration).exchanged


def test_texts_of_every_odd_kind_are_embedded_or_left_alone(database, migration):
    texts = {
        1: "",
        2: " \t\n",
        3: "word " * 2_000_000,
        4: "\x01\x1b[31m\x7f",
        5: "\ufffd \u202e \u200b",
        6: "🙂" * 1_000,
    }
    for identifier, odd in texts.items():
        execute(database, "UPDATE segments SET text = :odd WHERE id = :id", odd=odd, id=identifier)
    expand(migration, ENCODER.space)
    assert backfill(migration, ENCODER).pending_after == 0
    without = {row[0] for row in execute(database, "SELECT id FROM segments WHERE embedding_384 IS NULL")}
    quarantined = {int(row[0]) for row in execute(database, "SELECT row_id FROM segments_embedding_quarantine")}
    assert {1, 2} <= without == {1, 2} | quarantined
    assert 3 not in without
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


@pytest.mark.parametrize(
    ("missing", "said"),
    [("INSERT INTO audit_log VALUES (NEW.id)", "audit_log"), ("NEW.text := (SELECT nothing FROM segments)", "nothing")],
    ids=["table", "column"],
)
def test_a_trigger_that_names_what_is_not_there_is_no_exchange_of_columns(database, migration, missing, said):
    expand(migration, ENCODER.space)
    execute(
        database,
        f"CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {missing}; RETURN NEW; END $$; "
        "CREATE TRIGGER audit BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION audit()",
    )
    encoded = []
    with pytest.raises(PhaseError, match=f'"{said}" does not exist; PL/pgSQL function audit') as refused:
        backfill(migration, Wrapped(before=encoded.extend))
    assert refused.value.state == "0 rows are committed, nothing is lost"
    assert len(encoded) == len(set(encoded))  # no text twice
    execute(database, "DROP TRIGGER audit ON segments")
    assert backfill(migration, ENCODER).pending_after == 0


def test_an_operator_that_stalls_under_the_locks_of_a_batch_loses_its_session_and_writes_the_batch_again(
    database, make_settings, monkeypatch, caplog
):
    """The application waits no longer than the server lets a session be silent: a stall in a batch costs that batch a try."""
    settings = make_settings(backfill_batch_rows=50)
    expand(Migration(database, settings), ENCODER.space)
    monkeypatch.setattr(locks, "_LONGEST_SILENCE_MS", 400)
    stalled = []

    def stall(_connection, _cursor, statement, *_):
        if "UPDATE" in statement and "SET" in statement and "s.vector" in statement and not stalled:
            stalled.append(statement)

    def sleep(connection):
        if len(stalled) == 1:
            stalled.append("woken")
            time.sleep(1.5)

    event.listen(Engine, "after_cursor_execute", stall)
    event.listen(Engine, "commit", sleep)
    try:
        done = backfill(Migration(database, settings), ENCODER)
    finally:
        event.remove(Engine, "after_cursor_execute", stall)
        event.remove(Engine, "commit", sleep)
    assert len(stalled) == 2
    assert (done.rows, done.pending_after) == (300, 0)
    assert "writing failed" in caplog.text
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
