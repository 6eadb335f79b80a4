"""Swap exchanges the columns in one short transaction, after everything was verified under the lock."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.notes import note_statement
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import EmbeddingSpaceMismatch, LockNotAcquired, PhaseError, SwapRefused
from bge_pipeline.phases import swap as swap_module
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.phases.locking_out import before_writers_are_locked_out
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    Wrapped,
    application,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    scalar,
    schema_of,
    swap,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector


def before_the_lock(monkeypatch, act):
    """Run `act` after every check that is made without the lock and before the lock is taken."""
    original = swap_module.compact_pending_index

    def compact(*args, **keywords):
        original(*args, **keywords)
        act()

    monkeypatch.setattr(swap_module, "compact_pending_index", compact)


def before_the_last_lock(monkeypatch, act):
    """Run `act` after the last catch-up, just before writers are locked out."""
    original = swap_module.lock_out_writers

    def lock_out(*arguments):
        act()
        original(*arguments)

    monkeypatch.setattr(swap_module, "lock_out_writers", lock_out)


LATE = "UPDATE segments SET text = text || ' late' WHERE id <= 40"


def refuses(database, settings, error=SwapRefused, match=None, encoder=ENCODER):
    before = {name: columns_of(database)[name] for name in ("embedding", "embedding_384")}
    with pytest.raises(error, match=match) as refused:
        swap(Migration(database, settings), encoder)
    assert columns_of(database).items() >= before.items()
    return refused.value


class TestTheExchange:
    def test_search_reads_the_new_vectors_and_the_old_ones_are_kept(self, database, migration):
        old = execute(database, "SELECT id, embedding::text FROM segments ORDER BY id")
        result = fill_and_swap(migration)
        assert (result.exchanged, result.previous_column) == (True, "embedding_1536")
        types = columns_of(database)
        assert (types["embedding"], types["embedding_1536"]) == ("vector(384)", "vector(1536)")
        assert wrong_vectors(database, ENCODER, "embedding") == []
        assert execute(database, "SELECT id, embedding_1536::text FROM segments ORDER BY id") == old
        state = require_table(migration)
        assert state.phase == "swapped"
        assert space_of(state.table.embedding) == ENCODER.space
        assert space_of(state.previous).dimensions == 1536

    def test_the_new_column_has_a_valid_index_that_search_uses(self, database, migration):
        result = fill_and_swap(migration)
        status = read_status(migration)
        assert (status.index.name, status.index.method, status.index.valid) == (result.index_name, "ivfflat", True)
        with database.transaction() as connection:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            nearest = "(SELECT embedding FROM segments WHERE id = 1)"
            plan = connection.execute(text(f"EXPLAIN SELECT id FROM segments ORDER BY embedding <=> {nearest} LIMIT 5"))
            assert any(result.index_name in row[0] for row in plan)

    def test_the_lock_is_held_for_milliseconds(self, migration):
        assert 0 < fill_and_swap(migration).lock_milliseconds < 1_000

    def test_a_second_call_exchanges_nothing(self, database, migration):
        fill_and_swap(migration)
        before = schema_of(database)
        result = swap(migration)
        assert (result.exchanged, result.previous_column, result.index_built) == (False, "embedding_1536", False)
        assert schema_of(database) == before

    def test_old_embedding_drop_drops_them_in_the_same_transaction(self, database, make_settings):
        result = fill_and_swap(Migration(database, make_settings(old_embedding="drop")))
        assert result.previous_column is None
        assert "embedding_1536" not in columns_of(database)
        assert require_table(Migration(database, make_settings())).phase == "retired"
        execute(database, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert scalar(database, "SELECT embedding FROM segments WHERE id = 1") is None

    def test_old_index_keep_moves_with_the_old_vectors(self, database, make_settings):
        fill_and_swap(Migration(database, make_settings(old_index="keep")))
        definition = scalar(database, "SELECT pg_get_indexdef('segments_embedding_idx_of_embedding_1536'::regclass)")
        assert "(embedding_1536 vector_cosine_ops)" in definition

    @pytest.mark.pgvector("0.7")
    def test_hnsw_and_half_precision_can_be_asked_for(self, database, make_settings):
        settings = make_settings(index_method="hnsw", index_element="halfvec", index_m=8, index_ef_construction=20)
        result = fill_and_swap(Migration(database, settings))
        definition = scalar(database, "SELECT pg_get_indexdef(to_regclass(:name))", name=result.index_name)
        assert "USING hnsw" in definition
        assert "halfvec_cosine_ops" in definition
        assert "m='8'" in definition

    def test_an_old_column_that_must_not_be_null_no_longer_stops_inserts(self, database, migration):
        execute(database, "ALTER TABLE segments ALTER COLUMN embedding SET NOT NULL")
        assert fill_and_swap(migration).not_null_dropped
        execute(
            database,
            "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
            "SELECT source_id, 'new', 1, 2, 'new' FROM segments LIMIT 1",
        )
        assert backfill(migration, ENCODER).rows == 1

    @pytest.mark.parametrize("old", ["keep", "drop"])
    def test_rights_on_the_column_follow_its_name(self, database, make_settings, old):
        # Roles belong to the server, which other tests share at the same time.
        roles = (f"reader_{uuid.uuid4().hex[:8]}", f'Writer "of" {uuid.uuid4().hex[:8]}')
        quoted = ['"' + role.replace('"', '""') + '"' for role in roles]
        for role in quoted:
            execute(database, f"CREATE ROLE {role}")
        execute(database, f"GRANT SELECT (id, embedding) ON segments TO {quoted[0]}, PUBLIC")
        execute(database, f"GRANT UPDATE (embedding) ON segments TO {quoted[1]} WITH GRANT OPTION")
        fill_and_swap(Migration(database, make_settings(old_embedding=old)))
        assert scalar(database, "SELECT has_column_privilege(:r, 'segments', 'embedding', 'SELECT')", r=roles[0])
        assert scalar(
            database, "SELECT has_column_privilege(:r, 'segments', 'embedding', 'UPDATE WITH GRANT OPTION')", r=roles[1]
        )
        assert scalar(database, "SELECT has_column_privilege('pg_monitor', 'segments', 'embedding', 'SELECT')")
        for role in quoted:
            execute(database, f"DROP OWNED BY {role}")
            execute(database, f"DROP ROLE {role}")

    def test_vectors_without_a_declared_length_are_kept_as_legacy(self, database, migration):
        execute(database, "DROP INDEX segments_embedding_idx")
        execute(database, "ALTER TABLE segments ALTER COLUMN embedding TYPE vector")
        assert fill_and_swap(migration).previous_column == "embedding_legacy"


class TestWhatIsVerified:
    def test_rows_that_are_pending(self, database, migration, settings):
        expand(migration, ENCODER.space)
        refusal = refuses(database, settings, match="300 rows of .* are pending")
        assert "migrate" in refusal.next_step

    @pytest.mark.parametrize(("most", "left"), [(4, 0), (5, 5)])
    def test_pending_rows_may_be_allowed(self, filled, make_settings, monkeypatch, most, left):
        monkeypatch.setattr(swap_module, "backfill", lambda *_, **__: None)  # the catch-up
        execute(filled, "UPDATE segments SET text = 'changed' WHERE id <= 5")
        assert swap(Migration(filled, make_settings(swap_max_pending_rows=most))).last_rows == 5 - left
        assert len(pending_ids(filled, "embedding")) == left

    def test_a_view_that_is_created_after_the_last_look(self, filled, settings, monkeypatch):
        before_the_lock(monkeypatch, lambda: execute(filled, "CREATE VIEW late AS SELECT embedding FROM segments"))
        refuses(filled, settings, match="view late")

    def test_an_index_that_is_not_valid(self, filled, settings, monkeypatch):
        invalidate = (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = "
            "(SELECT oid FROM pg_class WHERE relname LIKE 'ix_segments_embedding_384%ivfflat')"
        )
        before_the_lock(monkeypatch, lambda: execute(filled, invalidate))
        refuses(filled, settings, match="is not valid")
        monkeypatch.undo()
        assert swap(Migration(filled, settings)).index_built, "the next run builds it again"

    def test_a_column_of_other_dimensions(self, filled, settings, monkeypatch):
        alter = (
            'DROP TRIGGER "~segments_embedding_written" ON segments; '  # which keeps the column's type
            "ALTER TABLE segments ALTER COLUMN embedding_384 TYPE vector(3) USING NULL::vector(3)"
        )
        before_the_last_lock(monkeypatch, lambda: execute(filled, alter))
        with pytest.raises(SwapRefused, match="does not hold 384 dimensions"):
            swap(Migration(filled, settings))
        assert columns_of(filled)["embedding"] == "vector(1536)"

    def test_vectors_of_another_model(self, filled, settings):
        with pytest.raises(EmbeddingSpaceMismatch):
            swap(Migration(filled, settings), HashingEncoder(seed=1))
        assert columns_of(filled)["embedding"] == "vector(1536)"

    def test_a_comment_that_says_another_model_by_the_time_of_the_lock(self, filled, settings, monkeypatch):
        def change():
            note = describe(filled).columns["embedding_384"].note
            other = replace(note, space=HashingEncoder(seed=1).space)
            with filled.transaction() as connection:
                connection.execute(note_statement(SEGMENTS, "embedding_384", other))

        before_the_lock(monkeypatch, change)
        refuses(filled, settings, EmbeddingSpaceMismatch)

    def test_that_nobody_else_exchanged_the_columns_meanwhile(self, filled, settings, monkeypatch):
        once = []

        def exchange_meanwhile():
            if not once:
                once.append(1)
                swap(Migration(filled, settings))

        before_the_lock(monkeypatch, exchange_meanwhile)
        with pytest.raises(PhaseError, match="by another process"):
            swap(Migration(filled, settings))
        assert require_table(Migration(filled, settings)).phase == "swapped"

    def test_that_there_is_something_to_swap(self, migration):
        with pytest.raises(PhaseError, match="phase legacy"):
            swap(migration)


def describe(database):
    with database.autocommit() as connection:
        return describe_table(connection, SEGMENTS)


class TestWhatDependsOnTheOldColumn:
    VIEW = "CREATE VIEW nearest AS SELECT id, embedding FROM segments"

    def test_is_named_and_the_swap_refused(self, filled, settings):
        execute(filled, self.VIEW)
        refusal = refuses(filled, settings, match="view nearest")
        assert "DEPENDENTS=ignore" in refusal.next_step

    def test_can_be_left_on_the_old_vectors_on_purpose(self, filled, make_settings):
        execute(filled, self.VIEW)
        assert swap(Migration(filled, make_settings(dependents="ignore"))).exchanged
        assert scalar(filled, "SELECT max(vector_dims(embedding)) FROM nearest") == 1536

    def test_cannot_be_left_on_vectors_that_are_dropped(self, filled, make_settings):
        execute(filled, self.VIEW)
        refusal = refuses(filled, make_settings(dependents="ignore", old_embedding="drop"), match="view nearest")
        assert "DEPENDENTS=ignore" not in refusal.next_step

    def test_does_not_stop_the_swap_when_it_goes_by_name(self, filled, settings):
        body = "'SELECT count(embedding) FROM segments'"
        execute(filled, f"CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql AS {body}")
        assert swap(Migration(filled, settings)).exchanged
        assert scalar(filled, "SELECT counted()") == 300


class TestBesideALiveApplication:
    def test_rows_that_come_while_index_and_gate_take_their_time_are_embedded(self, filled, settings, monkeypatch):
        before_the_lock(monkeypatch, lambda: execute(filled, "UPDATE segments SET text = 'late' WHERE id = 9"))
        assert swap(Migration(filled, settings)).exchanged
        assert wrong_vectors(filled, ENCODER, "embedding") == []

    @pytest.fixture
    def patient(self, make_settings):
        """Writers wait for as long as the swap needs, however busy this machine is."""
        return make_settings(swap_max_writer_pause_ms=60_000)

    def test_rows_that_come_after_the_catch_up_are_embedded_while_writers_wait(self, filled, patient, monkeypatch):
        before_writers_are_locked_out(monkeypatch, lambda: execute(filled, LATE))
        result = swap(Migration(filled, patient))
        assert (result.exchanged, result.last_rows) == (True, 40)
        assert result.writer_pause_milliseconds >= result.lock_milliseconds
        assert wrong_vectors(filled, ENCODER, "embedding") == []

    def test_readers_go_on_while_the_last_rows_are_embedded(self, filled, patient, monkeypatch):
        read, wrote = [], []

        def look(texts):
            if "late" in texts[0]:
                with application(filled) as other:
                    read.append(other.exec_driver_sql("SELECT count(*) FROM segments").scalar_one())
                    other.exec_driver_sql("SET lock_timeout = '20ms'")
                    with pytest.raises(DBAPIError, match="lock timeout"):
                        other.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1")
                    wrote.append("waits")

        before_writers_are_locked_out(monkeypatch, lambda: execute(filled, LATE))
        assert swap(Migration(filled, patient), Wrapped(before=look)).exchanged
        assert (read[:1], wrote[:1]) == ([300], ["waits"])

    def test_it_gives_way_when_writers_would_wait_too_long_and_says_what_it_needs(
        self, filled, make_settings, monkeypatch
    ):
        settings = make_settings(swap_max_writer_pause_ms=100)
        rounds = []

        def late():
            rounds.append(1)
            execute(filled, LATE)

        before_writers_are_locked_out(monkeypatch, late)
        encoder = Wrapped(before=lambda texts: time.sleep(0.2) if "late" in texts[0] else None)
        refusal = refuses(filled, settings, match="40 rows .* take .* ms to embed", encoder=encoder)
        assert "SWAP_MAX_WRITER_PAUSE_MS=" in refusal.next_step
        assert len(rounds) == swap_module._CATCH_UP_ROUNDS

    def test_it_comes_to_an_end_in_a_storm_of_writes(self, filled, settings):
        stop, written = threading.Event(), []

        def storm(first):
            with application(filled) as writer:
                autocommit = writer.execution_options(isolation_level="AUTOCOMMIT")
                while not stop.is_set():
                    row = first + len(written) % 50
                    autocommit.exec_driver_sql(f"UPDATE segments SET text = 'again {len(written)}' WHERE id = {row}")
                    written.append(row)

        threads = [threading.Thread(target=storm, args=(first,)) for first in (1, 101)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(written) > 20)
            result = swap(Migration(filled, settings))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert result.exchanged
        backfill(Migration(filled, settings), ENCODER)
        assert wrong_vectors(filled, ENCODER, "embedding") == []

    def test_a_table_that_stays_busy_is_given_up_and_nothing_exchanged(self, filled, make_settings, monkeypatch):
        with application(filled) as other:
            before_writers_are_locked_out(
                monkeypatch,
                lambda: other.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1"),
            )
            refusal = refuses(filled, make_settings(lock_max_attempts=2), LockNotAcquired, "swap: exchange")
        assert refusal.state == "nothing was changed by this step"

    def test_queries_that_arrive_while_it_waits_are_answered(self, filled, make_settings, monkeypatch):
        settings = make_settings(lock_timeout_ms=100, lock_max_attempts=3)
        stop, answered = threading.Event(), []

        def query():
            with application(filled) as reader:
                reader.exec_driver_sql("SET statement_timeout = '3s'")
                while not stop.is_set():
                    answered.append(reader.exec_driver_sql("SELECT count(*) FROM segments").scalar_one())
                    reader.rollback()

        with application(filled) as other:
            before_writers_are_locked_out(monkeypatch, lambda: other.exec_driver_sql("SELECT * FROM segments LIMIT 1"))
            thread = threading.Thread(target=query)
            thread.start()
            try:
                refuses(filled, settings, LockNotAcquired)
            finally:
                stop.set()
                thread.join()
        assert set(answered) == {300}

    def test_readers_see_one_column_or_the_other_and_never_none(self, filled, settings):
        stop, seen, errors = threading.Event(), set(), []

        def read():
            with application(filled) as reader:
                while not stop.is_set():
                    try:
                        seen.update(
                            row[0]
                            for row in reader.exec_driver_sql("SELECT DISTINCT vector_dims(embedding) FROM segments")
                        )
                    except DBAPIError as error:
                        errors.append(error)
                    reader.rollback()

        thread = threading.Thread(target=read)
        thread.start()
        try:
            wait_until(lambda: seen == {1536})
            swap(Migration(filled, settings))
            wait_until(lambda: 384 in seen)
        finally:
            stop.set()
            thread.join()
        assert errors == []
        assert seen == {1536, 384}


def test_the_exchange_is_as_durable_as_any_commit_though_the_last_rows_were_not(database, migration, monkeypatch):
    fill(migration)
    before_writers_are_locked_out(monkeypatch, lambda: execute(database, LATE))
    original = swap_module.exchange_statements
    look = "BEGIN IF current_setting('synchronous_commit') <> 'on' THEN RAISE EXCEPTION 'not durable'; END IF; END"

    def statements(*arguments, **named):
        return [text(f"DO $$ {look} $$"), *original(*arguments, **named)]

    monkeypatch.setattr(swap_module, "exchange_statements", statements)
    assert swap(migration).last_rows == 40
