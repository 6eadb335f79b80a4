"""Roles and applications of every isolation level: our statements fail under none, and the application's under the strict ones
fail as beside any other writer, to be tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from psycopg2.errors import SerializationFailure

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import ENCODER, as_it_stands, fill, fill_and_swap, scalar, swap, wrong_vectors

pytestmark = pytest.mark.pgvector

LEVELS = ["read uncommitted", "read committed", "repeatable read", "serializable"]
STRICT = LEVELS[2:]


@contextmanager
def busy_application(database: Database) -> Iterator[None]:
    """A client of the default isolation level that changes one text after another, trying again where it has to."""
    over = threading.Event()
    failed: list[BaseException] = []

    def change(connection, number: int) -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE segments SET text = %s WHERE id = %s", (f"changed for the {number}th time", number % 300 + 1)
            )
            cursor.execute("SELECT count(*) FROM segments")

    def work() -> None:
        number = 0
        dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg2.connect(dsn)
        try:
            while not over.wait(0.1):
                try:
                    change(connection, number)
                except SerializationFailure:
                    continue
                number += 7
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failed == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_migration_beside_an_application_of_any_level_meets_no_serialization_failure(
    database, database_url, make_settings, caplog, level
):
    settings = make_settings(backfill_batch_rows=20, lock_timeout_ms=500, lock_max_attempts=20)
    name = database.url.database
    as_it_stands(database, f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    with Database(database_url) as ours:
        assert scalar(ours, "SHOW transaction_isolation") == "read committed"
        with busy_application(ours):
            fill_and_swap(Migration(ours, settings))
            rollback(Migration(ours, settings))
            fill(Migration(ours, settings))
            swap(Migration(ours, settings))
        fill(Migration(ours, settings))
        retire(Migration(ours, settings))
        status = read_status(Migration(ours, settings))
        assert (status.phase, status.pending, status.embedded) == ("retired", 0, status.rows)
        assert wrong_vectors(ours, ENCODER, "embedding") == []
    assert "could not serialize" not in caplog.text


@pytest.mark.parametrize("level", STRICT)
def test_an_application_whose_row_was_embedded_since_its_snapshot_tries_again(database, settings, level):
    fill(Migration(database, settings))
    dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    application = psycopg2.connect(dsn)
    application.set_session(isolation_level=level)
    as_it_stands(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    change = "UPDATE segments SET speaker_label = 'me' WHERE id = 1"
    with application.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM segments")
        backfill(Migration(database, settings), ENCODER)
        with pytest.raises(SerializationFailure):
            cursor.execute(change)
        application.rollback()
        cursor.execute(change)
        application.commit()
    application.close()
    assert scalar(database, "SELECT speaker_label FROM segments WHERE id = 1") == "me"
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
