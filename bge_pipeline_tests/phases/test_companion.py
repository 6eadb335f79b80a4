"""The next migration of a finished table: what the application writes meanwhile is found by search all the while."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.database.quarantine import list_quarantined
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import DatabaseUnavailable, OutOfMemory, PhaseError
from bge_pipeline.phases import backfill as backfill_module
from bge_pipeline.phases import companion as companion_module
from bge_pipeline.phases import swap as swap_module
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.companion import CompanionKeeper, keep_companion
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import pause
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback, rollback_cost
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.endpoint_server import serving
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    Wrapped,
    execute,
    fill_and_swap,
    forget_old_model,
    parsed,
    pending_ids,
    put_in_quarantine,
    scalar,
    schema_of,
    swap,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

NEXT = HashingEncoder(256)
SAME_SIZE = HashingEncoder(seed=1)
COMPANION_QUARANTINE = "segments_embedding_companion_quarantine"


@pytest.fixture
def settings(make_settings):
    """Small batches, so that much can happen between them."""
    return make_settings(embedding_dimensions=256, backfill_batch_rows=50)


@pytest.fixture
def finished(database, make_settings):
    """The demo table after its first migration."""
    settings = make_settings()
    fill_and_swap(Migration(database, settings))
    retire(Migration(database, settings))
    return database


@pytest.fixture
def migrating(finished, settings):
    """The same in its second migration, to 256 dimensions."""
    expand(Migration(finished, settings), NEXT.space, begin_next=True)
    return finished


@pytest.fixture
def looks_often(monkeypatch):
    monkeypatch.setattr(companion_module, "LOOK_SECONDS", 0.05)


def insert(database, *texts):
    """New rows of the application's, without a vector; their ids."""
    return [
        scalar(
            database,
            "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
            "SELECT source_id, 'new', (SELECT max(id) FROM segments), 1e6, :text FROM segments LIMIT 1 RETURNING id",
            text=text,
        )
        for text in texts
    ]


def found_by_search(database, row_id):
    return scalar(database, "SELECT embedding IS NOT NULL FROM segments WHERE id = :id", id=row_id)


class Hooked(HashingEncoder):
    """The encoder of the next model, with a hook before each batch."""

    def __init__(self, before, dimensions=256, seed=0):
        super().__init__(dimensions, seed)
        self._before = before

    def encode(self, tokens, *, batch_size=None):
        self._before(len(tokens))
        return super().encode(tokens, batch_size=batch_size)


class TestBesideALongBackfill:
    @pytest.mark.usefixtures("looks_often")
    def test_a_row_written_in_the_middle_is_found_before_the_end(self, migrating, settings):
        new, found = [], []

        def before(_rows):
            if not new:
                new.extend(insert(migrating, "written while the backfill goes on"))
                wait_until(lambda: found_by_search(migrating, new[0]))
                found.append(len(pending_ids(migrating, "embedding_256")))

        result = backfill(Migration(migrating, settings), Hooked(before))
        assert found == [301], "not one row of the new column was written when search found the new row"
        assert (result.rows, result.companion_rows, result.companion_pending) == (301, 1, 0)
        assert result.companion_is_kept is True
        assert wrong_vectors(migrating, ENCODER, "embedding") == []
        assert wrong_vectors(migrating, NEXT, "embedding_256") == []

    def test_what_search_lacks_comes_before_the_first_batch(self, migrating, settings):
        (row,) = insert(migrating, "written before the backfill")
        execute(migrating, "UPDATE segments SET text = 'changed' WHERE id = 7")
        lacking = []
        backfill(Migration(migrating, settings), Hooked(lambda _: lacking.append(pending_ids(migrating, "embedding"))))
        assert lacking[0] == []
        assert found_by_search(migrating, row)

    def test_what_came_last_is_embedded_for_both_columns(self, migrating, settings):
        rows = []

        def before(_rows):
            if len(rows) < 3:
                rows.extend(insert(migrating, f"number {len(rows)}"))

        backfill(Migration(migrating, settings), Hooked(before))
        assert pending_ids(migrating, "embedding") == pending_ids(migrating, "embedding_256") == []

    def test_one_range_keeps_the_searched_column_of_the_whole_table(self, migrating, settings):
        (row,) = insert(migrating, "far above the range")
        backfill(Migration(migrating, settings), NEXT, IdRange(1, 51, INTEGERS))
        assert found_by_search(migrating, row)
        assert len(pending_ids(migrating, "embedding_256")) == 251

    @pytest.mark.usefixtures("looks_often")
    @pytest.mark.parametrize("step", ["build_index", "require_quality"])
    def test_a_row_written_while_the_swap_prepares_is_found(self, migrating, settings, monkeypatch, step):
        backfill(Migration(migrating, settings), NEXT)
        ordinary = getattr(swap_module, step)

        def slow(*arguments, **named):
            (row,) = insert(migrating, "written during " + step)
            wait_until(lambda: found_by_search(migrating, row))
            return ordinary(*arguments, **named)

        monkeypatch.setattr(swap_module, step, slow)
        assert swap(Migration(migrating, settings), NEXT).exchanged
        assert wrong_vectors(migrating, NEXT, "embedding") == []
        assert wrong_vectors(migrating, ENCODER, "embedding_384") == []

    def test_ctrl_c_leaves_no_thread(self, migrating, settings):
        before = threading.active_count()

        def interrupt(_progress):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backfill(Migration(migrating, settings), NEXT, on_progress=interrupt)
        assert threading.active_count() == before

    def test_an_old_model_slower_than_the_application_does_not_starve_the_new_one(
        self, migrating, settings, monkeypatch
    ):
        monkeypatch.setattr(companion_module, "PATIENCE_SECONDS", 0.2)
        never_done = Hooked(lambda _: (insert(migrating, "one more"), time.sleep(0.01)), 384)
        monkeypatch.setattr(companion_module, "load_encoder_of", lambda *_: never_done)
        insert(migrating, "the first")
        before = threading.active_count()
        result = backfill(Migration(migrating, settings), NEXT, IdRange(1, 301, INTEGERS))
        assert (result.rows, result.pending_after) == (300, 0)
        assert result.companion_rows > 1
        assert threading.active_count() == before


def test_of_several_runs_one_encodes_for_the_old_model_and_the_others_leave_it_to_it(migrating, settings, monkeypatch):
    encoded, others = [], []

    def see(texts):
        encoded.append(texts)
        if not others:
            others.append(keep_companion(Migration(migrating, settings)))

    monkeypatch.setattr(companion_module, "load_encoder_of", lambda *_: Hooked(see, 384))
    insert(migrating, "one", "two")
    kept = keep_companion(Migration(migrating, settings))
    assert (kept.rows, kept.pending) == (2, 0)
    assert [(other.rows, other.pending, other.is_left) for other in others] == [(0, 2, True)]
    assert not kept.is_left
    assert sum(encoded) == 2


def test_an_endpoint_that_never_answers_is_waited_for_no_longer_than_patience_lasts(
    migrating, settings, make_settings, monkeypatch
):
    with serving() as server:
        server.seconds = 60
        named = {"embedding_provider": "openai", "embedding_model": "m", "embedding_api_url": server.url}
        silent = EndpointEncoder(make_settings(**named))
        monkeypatch.setattr(companion_module, "load_encoder_of", lambda *_: silent)
        monkeypatch.setattr(companion_module, "PATIENCE_SECONDS", 1.0)
        insert(migrating, "one")
        started = time.monotonic()
        result = backfill(Migration(migrating, settings), NEXT)
        assert time.monotonic() - started < 30
        assert (result.rows, result.companion_rows, result.companion_pending) == (301, 0, 1)
        assert server.texts == ["one"]
        ours = ("companion-keeper", "endpoint")
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(ours)]


@pytest.mark.parametrize(("step", "answers"), [("_state", 0), ("_state", 1), ("result", 0)])
def test_a_database_that_is_away_for_a_moment_stops_no_block(migrating, settings, monkeypatch, caplog, step, answers):
    ordinary, asked = getattr(CompanionKeeper, step), []

    def away(keeper):
        asked.append(step)
        if threading.current_thread() is threading.main_thread() and len(asked) > answers:
            raise DatabaseUnavailable("the server closed the connection")
        return ordinary(keeper)

    monkeypatch.setattr(CompanionKeeper, step, away)
    (row,) = insert(migrating, "written before")
    with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
        result = backfill(Migration(migrating, settings), NEXT)

    assert (result.rows, result.pending_after) == (301, 0)
    assert found_by_search(migrating, row) == (asked != ["_state"] * 2)
    assert "is not known: the server closed the connection" in caplog.text


def test_a_pause_holds_what_is_under_way(migrating, settings):
    execute(migrating, "UPDATE segments SET text = text || ' anew' WHERE id <= 40")
    keeper = CompanionKeeper(Migration(migrating, settings.model_copy(update={"backfill_batch_rows": 1})))
    stop = threading.Event()

    begun = []

    def pause_once(_rows):
        if not begun:
            begun.append(1)
            pause(Migration(migrating, settings))
            time.sleep(1)  # a pause is looked for twice a second
            threading.Timer(2, stop.set).start()

    keeper._encoder = Hooked(pause_once, 384)
    keeper.embed_pending(stop)
    assert len(pending_ids(migrating, "embedding")) >= 30, "what was under way was written, and no more"


class TestTheOldModel:
    @pytest.fixture
    def loaded(self, monkeypatch):
        """The encoders that were loaded for the old space, and those that were closed."""
        loaded, closed = [], []

        class Told(HashingEncoder):
            def close(self):
                closed.append(self)

        def load(space, _settings):
            loaded.append(Told(space.dimensions))
            return loaded[-1]

        monkeypatch.setattr(companion_module, "load_encoder_of", load)
        return loaded, closed

    def test_is_loaded_only_for_a_row_that_waits_and_then_released(self, migrating, settings, loaded):
        backfill(Migration(migrating, settings), NEXT)
        assert loaded == ([], [])
        insert(migrating, "one", "two")
        backfill(Migration(migrating, settings), NEXT)
        assert len(loaded[0]) == 1
        assert loaded[1] == loaded[0]

    @pytest.mark.thorough
    def test_may_be_a_real_one(self, database, make_settings):
        real = {"embedding_model": "bundled", "embedding_backend": "torch", "quality_gate": "off", "search_probes": 10}
        settings = make_settings(**real)
        execute(database, "DELETE FROM segments WHERE id > 20")
        with open_service(Migration(database, settings)) as service:
            migrate(Migration(database, settings), service)
            text = "a row that the application wrote in the middle of the next migration"
            expected = service.encode_texts([text])[0]
        retire(Migration(database, settings))
        settings = make_settings(**real | {"embedding_model": "hashing", "embedding_dimensions": 256})
        expand(Migration(database, settings), NEXT.space, begin_next=True)
        (row,) = insert(database, text)
        assert backfill(Migration(database, settings), NEXT).companion_rows == 1
        stored = parsed(scalar(database, "SELECT embedding::text FROM segments WHERE id = :id", id=row))
        assert np.dot(stored, expected) > 0.999

    def test_is_released_when_nothing_has_waited_for_long(self, migrating, settings, loaded):
        insert(migrating, "one")
        keeper = CompanionKeeper(Migration(migrating, settings))
        for _ in range(30):
            keeper.look(threading.Event())
        assert loaded[1] == []
        keeper.look(threading.Event())
        assert loaded[1] == loaded[0]

    def test_that_is_not_at_hand_is_warned_of_and_stops_nothing(self, migrating, settings, caplog):
        forget_old_model(migrating)
        (row,) = insert(migrating, "lost to search")
        with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
            result = backfill(Migration(migrating, settings), NEXT)
        assert (result.rows, result.companion_is_kept, result.companion_pending) == (301, False, 1)
        assert caplog.text.count("search does not find what the application writes until the swap") == 1
        assert not found_by_search(migrating, row)

    def test_that_is_not_at_hand_is_warned_of_before_the_first_row_waits(self, finished, settings, caplog):
        forget_old_model(finished)
        with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
            expand(Migration(finished, settings), NEXT.space, begin_next=True)
        assert "search does not find what the application writes until the swap" in caplog.text

    def test_is_looked_for_once(self, migrating, settings, monkeypatch):
        asked = []
        monkeypatch.setattr(companion_module, "load_encoder_of", lambda *_: asked.append(1))
        insert(migrating, "lost to search")
        keeper = CompanionKeeper(Migration(migrating, settings))
        for _ in range(3):
            keeper.look(threading.Event())
        assert asked == [1]

    def test_that_cannot_be_loaded_is_warned_of_and_stops_nothing(self, migrating, settings, monkeypatch, caplog):
        def load(*_):
            raise OSError("the file is damaged")

        monkeypatch.setattr(companion_module, "load_encoder_of", load)
        insert(migrating, "lost to search")
        with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
            assert backfill(Migration(migrating, settings), NEXT).rows == 301
        assert "the file is damaged" in caplog.text

    @pytest.mark.parametrize("error", [MemoryError(), OutOfMemory("no memory on cuda:0 for the network in fp16")])
    def test_runs_on_the_cpu_where_the_device_has_no_memory_for_a_second(self, migrating, settings, monkeypatch, error):
        devices = []

        def load(space, settings):
            devices.append(settings.embedding_device)
            if settings.embedding_device != "cpu":
                raise error
            return HashingEncoder(space.dimensions)

        monkeypatch.setattr(companion_module, "load_encoder_of", load)
        (row,) = insert(migrating, "small device")
        backfill(Migration(migrating, settings), NEXT)
        assert devices == ["auto", "cpu"]
        assert found_by_search(migrating, row)

    def test_stays_out_of_memory_where_the_settings_say_so(self, migrating, make_settings, loaded):
        settings = make_settings(embedding_dimensions=256, keep_old_current="off")
        insert(migrating, "lost to search")
        assert backfill(Migration(migrating, settings), NEXT).companion_is_kept is False
        assert loaded == ([], [])

    def test_plays_no_part_in_a_first_migration(self, database, make_settings, loaded):
        settings = make_settings()
        expand(Migration(database, settings), ENCODER.space)
        execute(database, "UPDATE segments SET embedding = NULL WHERE id = 5")
        assert backfill(Migration(database, settings), ENCODER).companion_is_kept is None
        assert pending_ids(database, "embedding") == [5]
        assert loaded == ([], [])


class TestTheExchange:
    def test_a_pass_that_it_overtakes_writes_no_old_vector_into_the_new_column(self, finished, make_settings):
        """Both columns have 384 dimensions, and the name `embedding` passes from the one to the other."""
        settings = make_settings(quality_gate="off", search_probes=10)
        expand(Migration(finished, settings), SAME_SIZE.space, begin_next=True)
        backfill(Migration(finished, settings), SAME_SIZE)
        insert(finished, "one", "two")
        swapped = []

        def exchange(_rows):
            if not swapped:
                backfill(Migration(finished, settings), SAME_SIZE, keeps_companion=False)
                swapped.append(swap_module.swap(Migration(finished, settings), EmbeddingsService(SAME_SIZE, settings)))
                execute(finished, "UPDATE segments SET embedding = NULL, embedding_384 = NULL WHERE video_id = 'new'")

        slow = Hooked(exchange, 384)
        keeper = CompanionKeeper(Migration(finished, settings))
        keeper._encoder = slow
        keeper.embed_pending(threading.Event())
        assert swapped[0].exchanged
        assert wrong_vectors(finished, SAME_SIZE, "embedding") == []
        assert wrong_vectors(finished, ENCODER, "embedding_384") == []
        assert pending_ids(finished, "embedding_384") == [], "it went on under the column's other name"

    def test_a_backfill_that_it_overtakes_goes_on_under_the_other_name(self, migrating, settings):
        backfill(Migration(migrating, settings), NEXT)
        insert(migrating, "one")
        swapped = []

        def exchange(_rows):
            if not swapped:
                swapped.append(1)
                backfill(Migration(migrating, settings), NEXT, keeps_companion=False)
                swap(Migration(migrating, settings), NEXT)
                execute(migrating, "UPDATE segments SET embedding = NULL WHERE id = 7")

        assert backfill(Migration(migrating, settings), Hooked(exchange)).pending_after == 0
        assert pending_ids(migrating, "embedding") == []
        assert wrong_vectors(migrating, NEXT, "embedding") == []

    def test_what_a_pass_puts_aside_that_the_next_migration_overtakes_is_its_own_models(self, finished, settings):
        execute(finished, "UPDATE segments SET text = 'poison' WHERE id = 7")
        begun = []

        def begin_next(texts):
            if not begun:
                begun.append(expand(Migration(finished, settings), NEXT.space, begin_next=True))
            choke(texts)

        assert backfill(Migration(finished, settings), Wrapped(before=begin_next)).quarantined == 1
        with finished.autocommit() as connection:
            assert list_quarantined(connection, SEGMENTS) == []
            assert [row.row_id for row in list_quarantined(connection, SEGMENTS.companion)] == ["7"]
        assert 7 in pending_ids(finished, "embedding_256")

    def test_a_backfill_whose_column_is_dropped_is_told(self, migrating, settings):
        with pytest.raises(PhaseError, match="was dropped meanwhile"):
            backfill(Migration(migrating, settings), Hooked(lambda _: collapse(Migration(migrating, settings))))
        assert pending_ids(migrating, "embedding") == []

    def test_waits_for_no_old_model(self, migrating, settings, monkeypatch):
        backfill(Migration(migrating, settings), NEXT)
        ordinary = swap_module.lock_out_writers

        def lock(connection, target):
            if not pending_ids(migrating, "embedding"):
                insert(migrating, "one")
                raise swap_module.StillPending("rows are pending")
            ordinary(connection, target)

        monkeypatch.setattr(swap_module, "lock_out_writers", lock)
        monkeypatch.setattr(backfill_module, "CompanionKeeper", lambda *_, **__: pytest.fail("the moment was missed"))
        assert swap(Migration(migrating, settings), NEXT).exchanged
        assert len(pending_ids(migrating, "embedding_384")) == 1


class TestAfterTheSwap:
    @pytest.fixture
    def swapped(self, migrating, settings):
        backfill(Migration(migrating, settings), NEXT)
        swap(Migration(migrating, settings), NEXT)
        return migrating

    def test_a_rollback_loses_nothing(self, swapped, settings):
        rows = insert(swapped, "new", "newer")
        execute(swapped, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert read_status(Migration(swapped, settings)).without_previous == 3
        assert "3 rows came or changed" in rollback_cost(Migration(swapped, settings))
        result = backfill(Migration(swapped, settings), NEXT)
        assert (result.rows, result.companion_rows) == (3, 3)
        assert read_status(Migration(swapped, settings)).without_previous == 0
        assert rollback_cost(Migration(swapped, settings)) is None
        assert rollback(Migration(swapped, settings)).rows_without_old_vector == 0
        assert all(found_by_search(swapped, row) for row in (1, *rows))
        assert wrong_vectors(swapped, ENCODER, "embedding") == []

    def test_what_a_rollback_lost_is_embedded_first(self, swapped, settings):
        insert(swapped, "new")
        result = rollback(Migration(swapped, settings))
        assert "bge-pipeline embed gives them one" in result.notices[0]
        assert read_status(Migration(swapped, settings)).searched_pending == 1
        backfill(Migration(swapped, settings), NEXT)
        assert read_status(Migration(swapped, settings)).not_searchable == 0
        assert wrong_vectors(swapped, ENCODER, "embedding") == []

    def test_the_searched_column_comes_before_the_previous_one(self, swapped, settings):
        insert(swapped, "new")
        lacking = []
        backfill(Migration(swapped, settings), Hooked(lambda _: lacking.append(pending_ids(swapped, "embedding_384"))))
        assert len(lacking[0]) == 1
        assert pending_ids(swapped, "embedding_384") == []

    def test_nothing_is_kept_of_a_column_that_the_swap_drops(self, finished, make_settings):
        settings = make_settings(embedding_dimensions=256, old_embedding="drop")
        fill_and_swap(Migration(finished, settings), NEXT)
        assert scalar(finished, f"SELECT to_regclass('{COMPANION_QUARANTINE}')") is None
        execute(finished, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert backfill(Migration(finished, settings), NEXT).companion_is_kept is None
        assert wrong_vectors(finished, NEXT, "embedding") == []

    def test_retire_ends_it(self, swapped, settings):
        retire(Migration(swapped, settings))
        assert scalar(swapped, f"SELECT to_regclass('{COMPANION_QUARANTINE}')") is None
        execute(swapped, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert backfill(Migration(swapped, settings), NEXT).companion_is_kept is None

    def test_there_and_back_leaves_nothing_behind(self, finished, make_settings):
        settings = make_settings(embedding_dimensions=256, old_index="keep")
        fill_and_swap(Migration(finished, settings), NEXT)
        before = schema_of(finished)
        rollback(Migration(finished, settings))
        swap(Migration(finished, settings), NEXT)
        assert schema_of(finished) == before


class TestTextsThatOneModelCannotEmbed:
    @pytest.fixture
    def old_chokes(self, monkeypatch):
        monkeypatch.setattr(companion_module, "load_encoder_of", lambda *_: Wrapped(before=choke))

    def quarantined(self, database, target):
        with database.autocommit() as connection:
            return [row.row_id for row in list_quarantined(connection, target)]

    @pytest.mark.usefixtures("old_chokes")
    def test_the_other_embeds(self, migrating, settings):
        execute(migrating, "UPDATE segments SET text = 'poison' WHERE id = 7")
        assert backfill(Migration(migrating, settings), NEXT).quarantined == 0
        assert self.quarantined(migrating, SEGMENTS) == []
        assert self.quarantined(migrating, SEGMENTS.companion) == ["7"]
        assert pending_ids(migrating, "embedding_256") == []
        status = read_status(Migration(migrating, settings))
        assert (status.not_searchable, status.searched_pending, status.quarantined) == (1, 0, 0)
        assert [row.row_id for row in status.companion_quarantine] == ["7"]

    @pytest.mark.usefixtures("old_chokes")
    def test_are_pending_for_both_when_they_change(self, migrating, settings):
        execute(migrating, "UPDATE segments SET text = 'poison' WHERE id = 7")
        backfill(Migration(migrating, settings), NEXT)
        execute(migrating, "UPDATE segments SET text = 'a cure' WHERE id = 7")
        assert self.quarantined(migrating, SEGMENTS.companion) == []
        backfill(Migration(migrating, settings), NEXT)
        assert found_by_search(migrating, 7)

    def test_do_not_hide_a_row_from_search(self, migrating, settings):
        execute(migrating, "UPDATE segments SET text = 'poison' WHERE id = 7")

        class Chokes(HashingEncoder):
            def tokenize(self, texts):
                choke(texts)
                return super().tokenize(texts)

        assert backfill(Migration(migrating, settings), Chokes(256)).quarantined == 1
        assert found_by_search(migrating, 7)

    def test_stay_known_to_their_model_through_the_next_migration_and_its_end(self, finished, settings):
        put_in_quarantine(finished, 7)
        execute(finished, "UPDATE segments SET embedding = NULL WHERE id = 7")
        expand(Migration(finished, settings), NEXT.space, begin_next=True)
        assert self.quarantined(finished, SEGMENTS) == []
        assert self.quarantined(finished, SEGMENTS.companion) == ["7"]
        expand(Migration(finished, settings), NEXT.space, begin_next=True)
        backfill(Migration(finished, settings), NEXT)
        assert not found_by_search(finished, 7)
        collapse(Migration(finished, settings))
        assert self.quarantined(finished, SEGMENTS) == ["7"]
        assert scalar(finished, f"SELECT to_regclass('{COMPANION_QUARANTINE}')") is None


class TestWhatIsSaid:
    def test_status_counts_what_search_misses_beside_what_the_new_column_lacks(self, migrating, settings):
        insert(migrating, "new", "newer")
        status = read_status(Migration(migrating, settings))
        assert (status.column, status.pending) == ("embedding_256", 302)
        assert (status.searched_column, status.not_searchable, status.searched_pending) == ("embedding", 2, 2)
        keep_companion(Migration(migrating, settings))
        status = read_status(Migration(migrating, settings))
        assert (status.pending, status.not_searchable, status.searched_pending) == (302, 0, 0)

    @pytest.mark.parametrize("phase", ["retired", "expanded"])
    def test_plan_says_whether_search_goes_on_finding_new_rows(self, finished, settings, phase):
        if phase == "expanded":
            expand(Migration(finished, settings), NEXT.space, begin_next=True)
        service = EmbeddingsService(NEXT, settings)
        told = plan(Migration(finished, settings), service)
        assert told.keeps_search_current is True
        forget_old_model(finished)
        told = plan(Migration(finished, settings), service)
        assert told.keeps_search_current is False
        assert "search does not find what the application writes until the swap" in told.notices[0]

    def test_plan_of_a_first_migration_says_nothing_of_it(self, database, make_settings):
        settings = make_settings()
        told = plan(Migration(database, settings), EmbeddingsService(ENCODER, settings))
        assert (told.keeps_search_current, told.notices) == (None, ())

    def test_a_look_at_the_searched_column_is_answered_by_its_partial_index(self, migrating):
        execute(migrating, "ANALYZE segments")
        with migrating.autocommit() as connection:
            connection.exec_driver_sql("SET enable_seqscan = off")
            lines = connection.exec_driver_sql(
                "EXPLAIN SELECT id FROM segments t WHERE embedding IS NULL AND (text::text COLLATE \"C\") ~ '\\S' "
                "ORDER BY id LIMIT 1"
            ).scalars()
            assert SEGMENTS.pending_index("embedding_384", ENCODER.space.fingerprint) in "".join(lines)

    def test_an_index_of_pending_rows_that_was_dropped_comes_back_with_the_next_migration(self, finished, settings):
        name = SEGMENTS.pending_index("embedding_384", ENCODER.space.fingerprint)
        execute(finished, f"DROP INDEX {name}")
        expand(Migration(finished, settings), NEXT.space, begin_next=True)
        assert scalar(finished, f"SELECT pg_get_indexdef('{name}'::regclass)").count("embedding IS NULL") == 1


def choke(texts):
    if "poison" in texts:
        raise RuntimeError("cannot embed poison")
