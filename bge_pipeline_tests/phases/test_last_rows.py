"""Rows that are embedded while writers wait meet the application's triggers, and the exchange goes on behind them."""

from __future__ import annotations

import time

import pytest

from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases import swap as swap_module
from bge_pipeline.phases.migration import Migration
from bge_pipeline_tests.phases.locking_out import before_writers_are_locked_out
from bge_pipeline_tests.support import ENCODER, columns_of, execute, scalar, swap, wrong_vectors

pytestmark = pytest.mark.pgvector

LATE = "UPDATE segments SET text = text || ' late' WHERE id <= 40"


def add_deferred_trigger(database, body):
    execute(
        database,
        "CREATE TABLE heard (id bigint, path text); "
        f"CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$; "
        "CREATE CONSTRAINT TRIGGER hear AFTER UPDATE ON segments DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION hear()",
    )


def test_a_deferred_trigger_hears_of_the_last_rows_before_the_exchange(filled, migration, monkeypatch):
    add_deferred_trigger(filled, "INSERT INTO heard VALUES (NEW.id)")
    before_writers_are_locked_out(monkeypatch, lambda: execute(filled, LATE))
    assert swap(migration).last_rows == 40
    assert scalar(filled, "SELECT count(*) FROM heard") == 80  # the application's update, and ours
    assert wrong_vectors(filled, ENCODER, "embedding") == []


def test_a_deferred_trigger_that_refuses_them_is_told_in_words(filled, migration, monkeypatch):
    """Of each round: the backfill of the next one would put the rows aside, had the application not come again."""
    refuses = "IF NEW.embedding_384 IS NOT NULL THEN RAISE EXCEPTION 'no vector for %', NEW.id; END IF"
    add_deferred_trigger(filled, refuses)
    monkeypatch.setattr(swap_module, "_CATCH_UP_ROUNDS", 1)
    before_writers_are_locked_out(monkeypatch, lambda: execute(filled, LATE))
    with pytest.raises(SwapRefused, match="refuses the vectors of its last rows: no vector for") as refused:
        swap(migration)
    assert "nothing was exchanged" in refused.value.state
    assert columns_of(filled)["embedding"] == "vector(1536)"


def test_a_look_at_them_that_takes_longer_than_writers_may_wait_is_given_up(filled, make_settings, monkeypatch):
    def sleep(connection, *_):
        connection.exec_driver_sql("SELECT pg_sleep(30)")

    monkeypatch.setattr(swap_module, "_CATCH_UP_ROUNDS", 1)
    monkeypatch.setattr(swap_module, "has_more_pending_than", sleep)
    started = time.monotonic()
    with pytest.raises(SwapRefused, match=r"took longer than writers may wait: 300 ms") as refused:
        swap(Migration(filled, make_settings(swap_max_writer_pause_ms=300)))
    assert time.monotonic() - started < 15
    assert "nothing was exchanged" in refused.value.state
    assert columns_of(filled)["embedding"] == "vector(1536)"


def test_the_exchange_behind_them_runs_with_our_own_settings(filled, migration, monkeypatch):
    theirs = {"standard_conforming_strings": "off", "DateStyle": "SQL", "search_path": "nowhere, public"}
    for name, value in theirs.items():
        database = "EXECUTE format('ALTER DATABASE %I SET {} = {}', current_database())"
        execute(filled, f"DO $$ BEGIN {database.format(name, value)}; END $$")
    filled.close()
    add_deferred_trigger(filled, "INSERT INTO heard VALUES (NEW.id, current_setting('search_path'))")
    before_writers_are_locked_out(monkeypatch, lambda: execute(filled, LATE))
    seen, locks = [], swap_module.lock_for_exchange

    def lock_for_exchange(connection, *arguments):
        seen.append([connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in theirs])
        locks(connection, *arguments)

    monkeypatch.setattr(swap_module, "lock_for_exchange", lock_for_exchange)
    assert swap(migration).last_rows == 40
    assert seen == [["on", "ISO, MDY", "public"]]
    assert scalar(filled, "SELECT count(*) FROM heard WHERE path = 'nowhere, public'") >= 40
