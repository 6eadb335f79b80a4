"""Backfill gives every pending row the vector of its text, whatever else happens to the table meanwhile."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import (
    DatabaseUnavailable,
    EmbeddingSpaceMismatch,
    EncodingError,
    PhaseError,
    ReadOnlyDatabase,
    Stopped,
)
from bge_pipeline.phases import row_writing
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import (
    ENCODER,
    Wrapped,
    application,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    scalar,
    statements_run_by,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector


@pytest.fixture
def settings(make_settings):
    """Small batches, so that much can happen between them."""
    return make_settings(backfill_batch_rows=50)


@pytest.fixture
def expanded(database, migration):
    """The demo table in phase expanded."""
    expand(migration, ENCODER.space)
    return database


def quarantined(database):
    return dict(tuple(row) for row in execute(database, "SELECT row_id, error FROM segments_embedding_quarantine"))


class TestTheOrdinaryCourse:
    def test_every_row_gets_the_vector_of_its_text(self, expanded, settings):
        seen = []
        result = backfill(Migration(expanded, settings), ENCODER, on_progress=seen.append)
        assert (result.rows, result.pending_after, result.quarantined, result.left_changed) == (300, 0, 0, 0)
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []
        assert pending_ids(expanded) == []
        assert [progress.written for progress in seen] == [50, 100, 150, 200, 250, 300]
        assert {progress.total for progress in seen} == {300}

    def test_a_second_call_finds_nothing_to_do(self, expanded, settings):
        backfill(Migration(expanded, settings), ENCODER)
        versions = execute(expanded, "SELECT id, xmin::text FROM segments ORDER BY id")
        assert backfill(Migration(expanded, settings), ENCODER).rows == 0
        assert execute(expanded, "SELECT id, xmin::text FROM segments ORDER BY id") == versions

    def test_a_range_is_filled_and_nothing_else(self, expanded, settings):
        result = backfill(Migration(expanded, settings), ENCODER, IdRange(101, 161, INTEGERS))
        assert (result.rows, result.pending_after) == (60, 0)
        assert pending_ids(expanded) == [*range(1, 101), *range(161, 301)]

    def test_rows_without_text_are_left_alone(self, expanded, settings):
        execute(expanded, "ALTER TABLE segments ALTER COLUMN text DROP NOT NULL")
        execute(expanded, "UPDATE segments SET text = NULL WHERE id = 1")
        execute(expanded, "UPDATE segments SET text = E' \\t\\n' WHERE id = 2")
        assert backfill(Migration(expanded, settings), ENCODER).rows == 298
        status = read_status(Migration(expanded, settings))
        assert (status.embedded, status.pending, status.without_text) == (298, 0, 2)

    def test_after_the_swap_it_fills_the_column_that_search_reads(self, database, migration):
        fill_and_swap(migration)
        execute(database, "UPDATE segments SET text = 'changed' WHERE id < 10")
        assert backfill(migration, ENCODER).rows == 9
        assert wrong_vectors(database, ENCODER, "embedding") == []

    def test_texts_longer_than_the_model_reads_are_counted_and_reported(self, expanded, settings, caplog):
        execute(expanded, "UPDATE segments SET text = repeat('word ', 9000) WHERE id = 1")
        with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
            result = backfill(Migration(expanded, settings), ENCODER)
        assert result.truncated == 1
        assert "1 of 300 texts were longer than the 8192 tokens" in caplog.text

    def test_text_and_all_other_columns_stay_as_they_are(self, database, migration):
        columns = "id, source_id, video_id, start_sec, text, metadata::text, created_at, embedding::text"
        before = execute(database, f"SELECT {columns} FROM segments ORDER BY id")
        fill(migration)
        assert execute(database, f"SELECT {columns} FROM segments ORDER BY id") == before

    def test_no_thread_is_left(self, expanded, settings):
        before = threading.active_count()
        backfill(Migration(expanded, settings), ENCODER)
        assert threading.active_count() == before


class TestOneColumnOneSpace:
    def test_another_model_is_refused_before_anything_is_written(self, expanded, settings):
        with pytest.raises(EmbeddingSpaceMismatch, match="revision") as refused:
            backfill(Migration(expanded, settings), HashingEncoder(seed=1))
        assert refused.value.state == "nothing was written"
        assert len(pending_ids(expanded)) == 300

    def test_another_model_is_refused_after_the_swap_too(self, migration):
        fill_and_swap(migration)
        with pytest.raises(EmbeddingSpaceMismatch):
            backfill(migration, HashingEncoder(seed=1))

    def test_a_column_whose_identity_was_lost_is_refused(self, expanded, settings):
        execute(expanded, "COMMENT ON COLUMN segments.embedding_384 IS 'oops'")
        with pytest.raises(PhaseError, match="no column to fill"):
            backfill(Migration(expanded, settings), ENCODER)

    def test_a_table_that_was_not_expanded_is_told_how_to_begin(self, migration):
        with pytest.raises(PhaseError, match="phase legacy") as refused:
            backfill(migration, ENCODER)
        assert "bge-pipeline migrate" in refused.value.next_step


class TestBesideALiveApplication:
    def test_a_row_edited_while_its_vector_is_made_gets_the_vector_of_its_new_text(self, expanded, settings):
        edited = []

        def edit(texts):
            if not edited:
                two = list(dict.fromkeys(texts))[:2]
                edited.append(
                    execute(expanded, "UPDATE segments SET text = 'edited meanwhile' WHERE text = ANY(:two)", two=two)
                )

        result = backfill(Migration(expanded, settings), Wrapped(before=edit))
        assert (result.rows, result.left_changed, result.pending_after) == (300, 2, 0)
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_a_row_edited_and_not_committed_is_left_pending(self, expanded, make_settings):
        settings = make_settings(backfill_max_attempts=1)
        with application(expanded) as other:
            other.exec_driver_sql("UPDATE segments SET text = 'edited' WHERE id = 7")
            result = backfill(Migration(expanded, settings), ENCODER)
            other.commit()
        assert (result.rows, result.pending_after) == (299, 1)
        assert pending_ids(expanded) == [7]
        assert backfill(Migration(expanded, settings), ENCODER).rows == 1
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_rows_inserted_and_deleted_meanwhile_are_embedded_and_forgotten(self, expanded, settings):
        done = []

        def change(texts):
            if not done:
                done.append(1)
                execute(expanded, "DELETE FROM segments WHERE id IN (3, 300)")
                execute(
                    expanded,
                    "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
                    "SELECT source_id, 'new', id, id, 'new ' || id FROM segments LIMIT 20",
                )

        result = backfill(Migration(expanded, settings), Wrapped(before=change))
        assert result.pending_after == 0
        assert scalar(expanded, "SELECT count(embedding_384) FROM segments") == 318
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_two_backfills_at_once_write_every_row_once(self, expanded, settings):
        count_writes(expanded)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda _: backfill(Migration(expanded, settings), HashingEncoder()), range(2)))
        assert sum(result.rows for result in results) == 300
        assert scalar(expanded, "SELECT max(n) FROM writes") == 1
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_an_application_that_updates_in_another_order_is_no_deadlock_victim(self, expanded, make_settings):
        settings = make_settings(backfill_batch_rows=50, backfill_max_attempts=1)
        errors, stop = [], threading.Event()

        def update_backwards():
            with application(expanded) as other:
                while not stop.is_set():
                    try:
                        for row in range(300, 0, -30):
                            other.exec_driver_sql(f"UPDATE segments SET speaker_label = 'x' WHERE id = {row}")
                        other.commit()
                    except DBAPIError as error:
                        errors.append(error)
                        other.rollback()

        thread = threading.Thread(target=update_backwards)
        thread.start()
        try:
            backfill(Migration(expanded, settings), Wrapped(before=lambda _: time.sleep(0.05)))
        finally:
            stop.set()
            thread.join()
        assert errors == []
        backfill(Migration(expanded, settings), ENCODER)
        assert pending_ids(expanded) == []

    def test_where_most_rows_are_locked_at_any_moment_the_passes_together_get_hold_of_nearly_all(
        self, expanded, settings
    ):
        turns = itertools.count(1)
        locked = []

        def occupy(texts):
            """Lock seven rows of ten, each time others, as slow updates of the application do."""
            while locked:
                locked.pop().close()
            connection = expanded.engine.connect()
            locked.append(connection)
            chosen = text("SELECT id FROM segments WHERE mod(abs(hashint8extended(id, :turn)), 10) < 7 FOR UPDATE")
            connection.execute(chosen, {"turn": next(turns)})

        try:
            hasty = Migration(expanded, settings).with_settings(backfill_max_attempts=2)
            result = backfill(hasty, Wrapped(before=occupy))
        finally:
            for connection in locked:
                connection.close()
        assert result.rows + result.pending_after == 300
        assert result.pending_after < 15

    def test_a_row_that_is_touched_all_the_time_is_embedded_too(self, expanded, settings):
        def touch(texts):
            execute(expanded, "UPDATE segments SET metadata = '{}'")

        result = backfill(Migration(expanded, settings), Wrapped(before=touch))
        assert (result.rows, result.pending_after) == (300, 0)


class TestALockThatATriggerWaitsFor:
    """The application's trigger keeps something up to date that belongs to several rows, as a document does."""

    def add_trigger(self, database, documents):
        execute(
            database, f"CREATE TABLE documents AS SELECT n AS id, 0 AS parts FROM generate_series(0, {documents - 1}) n"
        )
        execute(
            database,
            "CREATE FUNCTION count_part() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN UPDATE documents SET parts = parts + 1 WHERE id = NEW.id % {documents}; RETURN NULL; END $$; "
            "CREATE TRIGGER counts AFTER UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION count_part()",
        )

    def test_keeps_the_rows_that_belong_to_it_and_no_others(self, expanded, make_settings):
        self.add_trigger(expanded, 100)
        encoded = []
        with application(expanded) as other:
            other.exec_driver_sql("UPDATE documents SET parts = 0 WHERE id = 7")
            settings = make_settings(backfill_batch_rows=150, backfill_max_attempts=1)
            result = backfill(Migration(expanded, settings), Wrapped(before=encoded.extend))
        assert pending_ids(expanded) == [7, 107, 207]
        assert (result.rows, result.pending_after) == (297, 3)
        assert len(encoded) == 303, "the rows that are left are tried once more, by themselves"
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_is_not_looked_for_row_by_row_where_all_wait_for_it(self, expanded, make_settings, monkeypatch):
        monkeypatch.setattr(row_writing, "_HALVING_SECONDS", 0.3)
        self.add_trigger(expanded, 1)
        settings = make_settings(backfill_batch_rows=50, backfill_max_attempts=1)

        def run():
            with application(expanded) as other:
                other.exec_driver_sql("UPDATE documents SET parts = 0")
                assert backfill(Migration(expanded, settings), ENCODER).rows == 0

        tried = [statement for statement in statements_run_by(run) if "s.vector" in statement]
        assert len(tried) < 50, "two passes over six batches, of each the first is halved"
        assert backfill(Migration(expanded, settings), ENCODER).pending_after == 0


class TestATableThatSomebodyLocked:
    """As a plain CREATE INDEX of the application's does: readers go on, writers wait."""

    def test_no_row_is_embedded_twice_for_it_and_who_holds_it_is_told(self, expanded, settings, caplog):
        with application(expanded) as other:
            other.exec_driver_sql("SET application_name = 'deployment'")
            other.exec_driver_sql("LOCK TABLE segments IN SHARE MODE")
            timer = threading.Timer(3, other.rollback)
            timer.start()
            encoded = []
            result = backfill(Migration(expanded, settings), Wrapped(before=encoded.extend))
            timer.join()
        assert (result.rows, result.pending_after, len(encoded)) == (300, 0, 300)
        assert result.held_seconds["locked"] > 1
        assert '"segments" is locked, its vectors are kept: waiting for pid' in caplog.text
        assert "deployment" in caplog.text

    def test_who_asks_for_the_end_does_not_wait_for_it(self, expanded, settings):
        stop = threading.Event()
        with application(expanded) as other:
            other.exec_driver_sql("LOCK TABLE segments IN SHARE MODE")
            timer = threading.Timer(2, stop.set)
            timer.start()
            result = backfill(Migration(expanded, settings), ENCODER, stop=stop)
            timer.join()
        assert result.rows == 0
        assert len(pending_ids(expanded)) == 300


class TestATableThatSomebodyKeepsReadersOff:
    """As VACUUM FULL does, for hours."""

    @pytest.fixture
    def other(self, expanded):
        with application(expanded) as connection:
            connection.exec_driver_sql("SET application_name = 'deployment'")
            connection.commit()
            yield connection

    def lock_at(self, other, rows, then):
        """Called with the progress: locks the table when so many rows are written."""

        def look(progress):
            if progress.written >= rows and not other.in_transaction():
                other.exec_driver_sql("LOCK TABLE segments IN ACCESS EXCLUSIVE MODE")
                then()

        return look

    def test_it_is_waited_for_and_who_it_is_is_told(self, expanded, make_settings, other, caplog):
        settings, timers, words = make_settings(backfill_batch_rows=10), [], []

        def unlock_later():
            timers.append(threading.Timer(4, other.rollback))
            timers[0].start()

        lock = self.lock_at(other, 10, unlock_later)

        def look(progress):
            words.append(progress.held)
            if not timers:
                lock(progress)

        result = backfill(Migration(expanded, settings), ENCODER, on_progress=look)
        timers[0].join()
        assert (result.rows, result.pending_after) == (300, 0)
        assert 1 < result.held_seconds["locked"] < 8
        assert '"segments" is locked, and cannot be read: waiting for pid' in caplog.text
        assert "deployment" in caplog.text
        assert any("deployment" in held for held in words if held)

    def test_who_asks_for_the_end_does_not_wait_for_it(self, expanded, settings, other):
        stop, before = threading.Event(), threading.active_count()
        timer = threading.Timer(1, stop.set)
        lock = self.lock_at(other, 300, timer.start)  # of the pass nothing is left but to count
        with pytest.raises(Stopped, match=r"stopped, as asked: .*segments.* is locked by pid .*deployment"):
            backfill(Migration(expanded, settings), ENCODER, on_progress=lock, stop=stop)
        timer.join()
        assert threading.active_count() == before

    def test_ctrl_c_leaves_no_thread_that_waits_for_it(self, expanded, settings, other):
        class LocksBehindTheFirstBatch(HashingEncoder):
            def tokenize(self, texts):
                if not other.in_transaction():
                    other.exec_driver_sql("LOCK TABLE segments IN ACCESS EXCLUSIVE MODE")
                return super().tokenize(texts)

        def interrupt(_progress):
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'"
            wait_until(lambda: scalar(expanded, waiting) == 1)
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            backfill(Migration(expanded, settings), LocksBehindTheFirstBatch(), on_progress=interrupt)
        assert threading.active_count() == before


class TestRowsThatCannotBeEmbedded:
    @pytest.fixture
    def poisoned(self, expanded):
        execute(expanded, "UPDATE segments SET text = 'poison ' || id WHERE id IN (10, 60, 61)")
        return expanded

    def fail_on_poison(self, texts):
        if any("poison" in text for text in texts):
            raise ValueError("the tokenizer chokes on poison")

    def test_they_are_put_aside_with_their_error_and_the_rest_is_embedded(self, poisoned, settings):
        result = backfill(Migration(poisoned, settings), Wrapped(before=self.fail_on_poison))
        assert (result.rows, result.quarantined, result.pending_after) == (297, 3, 0)
        assert quarantined(poisoned) == dict.fromkeys((10, 60, 61), "ValueError: the tokenizer chokes on poison")
        assert wrong_vectors(poisoned, ENCODER, "embedding_384") == []
        status = read_status(Migration(poisoned, settings))
        assert (status.phase, status.pending, status.quarantined) == ("backfilled", 0, 3)
        assert {row.row_id for row in status.quarantine} == {"10", "60", "61"}

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda vector: vector * np.nan, "length nan"),
            (lambda vector: vector * 0, "length 0.000"),
            (lambda vector: vector * 3, "length 3.000"),
            (lambda vector: vector * np.inf, "length"),
        ],
        ids=["NaN", "zero", "not normalised", "infinite"],
    )
    def test_vectors_that_no_search_would_find_are_put_aside(self, poisoned, settings, spoil, message):
        def after(texts, vectors):
            with np.errstate(invalid="ignore"):
                return np.array(
                    [spoil(v) if "poison" in t else v for t, v in zip(texts, vectors, strict=True)], np.float32
                ).reshape(vectors.shape)

        result = backfill(Migration(poisoned, settings), Wrapped(after=after))
        assert (result.rows, result.quarantined) == (297, 3)
        assert all(message in error for error in quarantined(poisoned).values())

    def test_rows_that_only_suffered_from_a_bad_neighbour_are_embedded(self, poisoned, settings):
        def spoil_the_batch(texts, vectors):
            return vectors * np.nan if any("poison" in text for text in texts) else vectors

        result = backfill(Migration(poisoned, settings), Wrapped(after=spoil_the_batch))
        assert (result.rows, sorted(quarantined(poisoned))) == (297, [10, 60, 61])

    def test_an_edit_of_the_text_gives_a_row_another_chance(self, poisoned, settings):
        encoder = Wrapped(before=self.fail_on_poison)
        backfill(Migration(poisoned, settings), encoder)
        execute(poisoned, "UPDATE segments SET text = 'an antidote' WHERE id = 10")
        assert backfill(Migration(poisoned, settings), encoder).rows == 1
        assert sorted(quarantined(poisoned)) == [60, 61]

    def test_an_id_that_comes_back_with_a_good_text_is_embedded(self, poisoned, settings):
        encoder = Wrapped(before=self.fail_on_poison)
        backfill(Migration(poisoned, settings), encoder)
        execute(poisoned, "CREATE TABLE kept AS SELECT * FROM segments WHERE id IN (10, 60)")
        execute(poisoned, "DELETE FROM segments WHERE id IN (10, 60)")
        execute(poisoned, "UPDATE kept SET text = 'an antidote' WHERE id = 10")
        execute(poisoned, "INSERT INTO segments SELECT * FROM kept")
        result = backfill(Migration(poisoned, settings), encoder)
        assert (result.rows, result.pending_after) == (1, 0)
        assert pending_ids(poisoned) == [60, 61]
        assert sorted(quarantined(poisoned)) == [60, 61], "and nothing is kept of the row that is embedded"

    @pytest.mark.parametrize(
        "encoder",
        [
            Wrapped(before=lambda _: (_ for _ in ()).throw(RuntimeError("CUDA error"))),
            Wrapped(after=lambda _, vectors: vectors * np.nan),
            Wrapped(after=lambda _, vectors: vectors * 2),
            Wrapped(after=lambda _, vectors: vectors[:, :100]),
            Wrapped(after=lambda _, vectors: vectors[1:]),
        ],
        ids=["always fails", "always NaN", "never normalises", "too short", "a row too few"],
    )
    def test_a_broken_encoder_is_not_blamed_on_the_rows(self, expanded, settings, encoder):
        before = threading.active_count()
        with pytest.raises(EncodingError) as refused:
            backfill(Migration(expanded, settings), encoder)
        assert "it resumes" in refused.value.next_step
        assert quarantined(expanded) == {}
        assert len(pending_ids(expanded)) == 300
        assert threading.active_count() == before

    def test_a_row_that_the_database_refuses_is_put_aside_with_its_reason(self, expanded, settings):
        execute(expanded, "ALTER TABLE segments ADD CONSTRAINT frozen CHECK (id <> 42 OR embedding_384 IS NULL)")
        result = backfill(Migration(expanded, settings), ENCODER)
        assert (result.rows, result.quarantined) == (299, 1)
        assert "frozen" in quarantined(expanded)[42]

    def test_a_trigger_that_refuses_every_row_is_not_blamed_on_the_rows(self, expanded, settings):
        execute(
            expanded,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'read only'; END $$",
        )
        execute(expanded, "CREATE TRIGGER refuses BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION refuse()")
        with pytest.raises(PhaseError, match="read only") as refused:
            backfill(Migration(expanded, settings), ENCODER)
        assert quarantined(expanded) == {}
        assert "no row was quarantined" in refused.value.state

    def test_nor_where_batches_are_so_small_that_it_could_be_theirs_for_a_while(self, expanded, make_settings):
        execute(expanded, "ALTER TABLE segments ADD CONSTRAINT none CHECK (embedding_384 IS NULL)")
        with pytest.raises(PhaseError, match="of 60 so far") as refused:
            backfill(Migration(expanded, make_settings(backfill_batch_rows=20)), ENCODER)
        assert len(quarantined(expanded)) == 40
        assert "the first 40 of these rows are in quarantine" in refused.value.state

    def test_the_last_rows_of_a_table_are_put_aside_though_all_of_them_are_refused(self, expanded, settings):
        backfill(Migration(expanded, settings), ENCODER)
        execute(expanded, "UPDATE segments SET text = 'frozen' WHERE id IN (5, 42)")
        execute(expanded, "ALTER TABLE segments ADD CONSTRAINT f CHECK (text <> 'frozen' OR embedding_384 IS NULL)")
        result = backfill(Migration(expanded, settings), ENCODER)
        assert (result.rows, result.quarantined, result.pending_after) == (0, 2, 0)
        assert sorted(quarantined(expanded)) == [5, 42]


class TestFailuresOnTheWay:
    @pytest.fixture
    def waits(self, monkeypatch):
        """Pauses between attempts, of each thread, are recorded instead of waited for."""
        seen = defaultdict(list)
        monkeypatch.setattr(
            "bge_pipeline.phases.row_path.RowPath.pause",
            lambda _self, seconds: seen[threading.get_ident()].append(seconds),
        )
        return seen

    def terminate_after(self, database, batches, who):
        calls = []

        def before(texts):
            calls.append(1)
            if len(calls) == batches:
                execute(
                    database,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    f"AND pid <> pg_backend_pid() AND query {who} 'UPDATE%'",
                )

        return Wrapped(before=before)

    @pytest.mark.usefixtures("waits")
    @pytest.mark.parametrize("who", ["LIKE", "NOT LIKE"], ids=["the writer", "the reader"])
    def test_a_connection_that_is_ended_is_opened_again(self, expanded, settings, who):
        result = backfill(Migration(expanded, settings), self.terminate_after(expanded, 3, who))
        assert (result.rows, result.pending_after) == (300, 0)
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_a_transient_error_is_tried_three_times_with_growing_pauses(self, expanded, settings, waits):
        name, calls = expanded.url.database, []
        with Database(expanded.url.set(database="postgres")) as server:

            def cut_off(texts):
                calls.append(1)
                if len(calls) == 3:
                    execute(server, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
                    execute(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n", n=name)

            with pytest.raises(DatabaseUnavailable, match="3 attempts") as refused:
                backfill(Migration(expanded, settings), Wrapped(before=cut_off))
            execute(server, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        assert "rows are committed" in refused.value.state
        assert max(map(len, waits.values())) == 2
        assert all(pauses == sorted(set(pauses)) for pauses in waits.values())
        left = len(pending_ids(expanded))
        assert 0 < left <= 300
        assert backfill(Migration(expanded, settings), ENCODER).rows == left

    @pytest.fixture
    def fail_over(self, expanded):
        """What lets new sessions change nothing after the first commit, as where a replica took the address over."""
        calls = []

        def once(_progress):
            calls.append(1)
            if len(calls) == 1:
                execute(expanded, f'ALTER DATABASE "{expanded.url.database}" SET default_transaction_read_only = on')
                execute(
                    expanded,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid()",
                )

        return once

    @pytest.mark.usefixtures("waits")
    def test_a_database_that_takes_no_changes_any_more_is_named(self, expanded, settings, fail_over):
        with pytest.raises(ReadOnlyDatabase, match="default_transaction_read_only is on") as refused:
            backfill(Migration(expanded, settings), ENCODER, on_progress=fail_over)
        assert refused.value.state == "50 rows are committed, nothing is lost"
        assert "RESET default_transaction_read_only" in refused.value.next_step

    def test_one_that_takes_them_again_is_written_to(self, expanded, settings, fail_over, monkeypatch, caplog):
        name = expanded.url.database

        def pause(_path, seconds):
            if threading.current_thread() is threading.main_thread() and seconds > 1:  # the writer's second
                with Database(expanded.url.set(database="postgres")) as server:
                    execute(server, f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
                expanded.engine.dispose()

        monkeypatch.setattr("bge_pipeline.phases.row_path.RowPath.pause", pause)
        result = backfill(Migration(expanded, settings), ENCODER, on_progress=fail_over)
        assert "read-only transaction), attempt" in caplog.text
        assert (result.rows, result.pending_after) == (300, 0)

    @pytest.mark.parametrize("batches", [1, 2, 4])
    def test_ctrl_c_keeps_what_was_committed_and_leaves_no_thread(self, expanded, settings, batches):
        before = threading.active_count()

        def interrupt(progress):
            if progress.written >= 50 * batches:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backfill(Migration(expanded, settings), ENCODER, on_progress=interrupt)
        assert threading.active_count() == before
        assert len(pending_ids(expanded)) == 300 - 50 * batches
        assert backfill(Migration(expanded, settings), ENCODER).rows == 300 - 50 * batches

    def test_a_polite_stop_ends_after_the_batches_in_flight(self, expanded, make_settings):
        stop, settings = threading.Event(), make_settings(backfill_batch_rows=10)
        result = backfill(Migration(expanded, settings), ENCODER, on_progress=lambda _: stop.set(), stop=stop)
        assert 10 <= result.rows < 200
        assert result.pending_after == 300 - result.rows
        assert wrong_vectors(expanded, ENCODER, "embedding_384") == []

    def test_an_encoder_that_is_slow_does_not_let_batches_pile_up(self, expanded, make_settings):
        class Slow(HashingEncoder):
            tokenized = encoded = furthest_ahead = 0

            def tokenize(self, texts):
                self.tokenized += 1
                self.furthest_ahead = max(self.furthest_ahead, self.tokenized - self.encoded)
                return super().tokenize(texts)

            def encode(self, tokens, *, batch_size=None):
                time.sleep(0.01)
                self.encoded += 1
                return super().encode(tokens, batch_size=batch_size)

        encoder = Slow()
        backfill(Migration(expanded, make_settings(backfill_batch_rows=10)), encoder)
        assert encoder.encoded == 30
        assert 2 <= encoder.furthest_ahead <= 6


def count_writes(database):
    """Count in a table of its own how often each row's new vector is written."""
    execute(database, "CREATE TABLE writes (id bigint PRIMARY KEY, n int)")
    execute(
        database,
        "CREATE FUNCTION count_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO writes VALUES (NEW.id, 1) ON CONFLICT (id) DO UPDATE SET n = writes.n + 1; RETURN NEW; END $$",
    )
    execute(
        database,
        "CREATE TRIGGER counts AFTER UPDATE OF embedding_384 ON segments FOR EACH ROW EXECUTE FUNCTION count_write()",
    )
