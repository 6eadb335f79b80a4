"""Two operators of one table: one works, the other is told who the first is, and no column ever changes its meaning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from bge_pipeline.cli import app
from bge_pipeline.database.index_build import build_concurrently
from bge_pipeline.database.operator import operating
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ChangedMeanwhile, OperatorBusy
from bge_pipeline.phases import expand as expand_module
from bge_pipeline.phases import search_effort
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.phases.swap import swap as swap_with_service
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    application,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    scalar,
    store_vectors,
    swap,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

OLD = HashingEncoder(seed=7)
ADVISORY_LOCKS = (
    "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database "
    "WHERE locktype = 'advisory' AND datname = current_database()"
)
END_OPERATORS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name LIKE 'bge-pipeline % (pro%' AND datname = current_database()"
)
ANN_INDEXES = (
    "SELECT a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam "
    "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
    "WHERE i.indrelid = 'segments'::regclass AND m.amname IN ('ivfflat', 'hnsw') AND i.indisvalid ORDER BY 1"
)


@pytest.fixture
def same_dimensions(database):
    """The demo table with old vectors of as many dimensions as the new ones will have."""
    execute(database, "ALTER TABLE segments DROP COLUMN embedding")
    execute(database, "ALTER TABLE segments ADD COLUMN embedding vector(384)")
    store_vectors(database, "embedding", OLD)
    execute(database, "CREATE INDEX segments_embedding_idx ON segments USING hnsw (embedding vector_cosine_ops)")
    return database


def start(settings, *arguments):
    variables = environment(settings, QUALITY_GATE="off", INDEX_METHOD="hnsw", SEARCH_EF_SEARCH="100")
    command = [sys.executable, "-m", "bge_pipeline", *arguments]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def migrated_rightly(database, settings):
    state = require_table(Migration(database, settings))
    assert state.phase == "swapped"
    assert space_of(state.table.embedding) == ENCODER.space
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert wrong_vectors(database, OLD, state.previous.name) == []
    assert "embedding" in [row[0] for row in execute(database, ANN_INDEXES)]
    return True


class TestTwoCommandsTogether:
    def test_one_migrates_and_the_other_is_told_who(self, same_dimensions, settings):
        with application(same_dimensions) as other:
            other.exec_driver_sql("LOCK TABLE segments IN ACCESS SHARE MODE")  # neither ends before the other begins
            commands = [start(settings, "migrate", "--json") for _ in range(2)]
            wait_until(lambda: any(command.poll() is not None for command in commands), 60)
        ended = [(command.communicate(timeout=120), command.returncode) for command in commands]
        assert sorted(code for _, code in ended) == [0, 6], ended
        (refusal,) = [error for (_, error), code in ended if code == 6]
        told = " ".join(refusal.split())
        assert "another operator is at work" in told
        assert "bge-pipeline migrate (process" in told
        assert "pid" in told
        assert "since 20" in told
        assert "Traceback" not in refusal
        assert migrated_rightly(same_dimensions, settings)

    def test_with_wait_the_second_finds_nothing_to_do(self, same_dimensions, settings):
        commands = [start(settings, "migrate", "--json", "--wait") for _ in range(2)]
        outputs = [command.communicate(timeout=120) for command in commands]
        assert [command.returncode for command in commands] == [0, 0], outputs
        assert sorted(json.loads(out)["swap"]["exchanged"] for out, _ in outputs) == [False, True]
        assert migrated_rightly(same_dimensions, settings)

    def test_a_lock_ends_with_the_process_that_holds_it(self, database, migration, settings):
        holder = (
            "import sys, time; from bge_pipeline.phases.migration import Migration; "
            "from bge_pipeline.settings import load_settings\n"
            "with Migration.opened(load_settings()) as migration, migration.operating('swap'):\n"
            " print('held', flush=True); time.sleep(600)"
        )
        variables = environment(settings)
        process = subprocess.Popen([sys.executable, "-c", holder], env=variables, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OperatorBusy, match=f"process {process.pid} on"):
            expand(migration, ENCODER.space)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        patient = settings.model_copy(update={"operator_wait_seconds": 10.0})
        assert expand(Migration(database, patient), ENCODER.space).added


@pytest.mark.parametrize(
    "act",
    [
        lambda migration: expand(migration, ENCODER.space),
        swap,
        rollback,
        retire,
        lambda migration: migrate(migration, EmbeddingsService(ENCODER, migration.settings)),
        collapse,
    ],
    ids=["expand", "swap", "rollback", "retire", "migrate", "collapse"],
)
def test_every_act_that_changes_the_schema_is_refused_while_another_operates(database, settings, act):
    fill(Migration(database, settings))
    before = columns_of(database)
    held, done = threading.Event(), threading.Event()

    def operate():
        with operating(database, settings, "another act"):
            held.set()
            done.wait(30)

    other = threading.Thread(target=operate)
    other.start()
    assert held.wait(30)
    try:
        with pytest.raises(OperatorBusy, match="another act"):
            act(Migration(database, settings))
    finally:
        done.set()
        other.join()
    assert columns_of(database) == before


class TestWhatNobodyWasAskedAbout:
    """A command that waits for another finds a column to drop or exchange that was not there when it asked its person."""

    def test_the_old_column_of_a_swap_that_was_waited_for_is_not_dropped(self, database, migration):
        asked = require_table(migration)
        fill_and_swap(migration)
        with pytest.raises(
            ChangedMeanwhile, match=r"column 'embedding_1536' .* is there since another process"
        ) as refused:
            retire(migration, seen=asked)
        assert refused.value.state == "nothing was changed"
        assert "embedding_1536" in columns_of(database)
        assert retire(migration, seen=require_table(migration)).dropped_column == "embedding_1536"

    def test_nor_is_the_new_column_of_an_expand(self, database, migration):
        asked = require_table(migration)
        expand(migration, ENCODER.space)
        with pytest.raises(ChangedMeanwhile, match="column 'embedding_384'"):
            collapse(migration, seen=asked)
        assert "embedding_384" in columns_of(database)

    def test_a_swap_that_came_while_rollback_asked_is_not_undone(
        self, database, migration, settings, make_settings, monkeypatch
    ):
        fill_and_swap(migration)
        next_one = Migration(database, make_settings(embedding_dimensions=256))
        questions = []

        def answer_late(question, **_):
            questions.append(question)
            retire(next_one)
            fill_and_swap(next_one, HashingEncoder(256))

        monkeypatch.setattr("bge_pipeline.cli.operating.confirm", answer_late)
        refused = CliRunner().invoke(app, ["rollback"], env=environment(settings)).exception

        assert "'embedding_1536'" in questions[0]
        assert isinstance(refused, ChangedMeanwhile)
        assert "column 'embedding_384'" in str(refused)
        state = require_table(next_one)
        assert (state.phase, state.table.embedding.dimensions, state.previous.dimensions) == ("swapped", 256, 384)
        assert rollback(next_one, seen=state).kept_column == "embedding_256"

    @pytest.mark.parametrize("act", [retire, rollback], ids=["retire", "rollback"])
    def test_who_waits_has_looked_before(self, database, settings, make_settings, act):
        waits = f"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'bge-pipeline {act.__name__} (pro%'"
        patient = Migration(database, make_settings(operator_wait_seconds=60))
        with ThreadPoolExecutor(1) as pool:
            with operating(database, settings, "migrate"):
                waiting = pool.submit(act, patient)
                wait_until(lambda: scalar(database, waits) > 0, 60)
                fill_and_swap(Migration(database, settings))
            with pytest.raises(ChangedMeanwhile, match="column 'embedding_1536'"):
                waiting.result()
        assert require_table(Migration(database, settings)).phase == "swapped"


def test_operators_of_two_tables_do_not_meet(database, make_settings):
    settings = make_settings()
    execute(database, "CREATE TABLE notes (LIKE segments INCLUDING ALL)")
    with operating(database, settings, "one"):
        other = make_settings(target_table="notes")
        thread_result = []
        thread = threading.Thread(
            target=lambda: thread_result.append(expand(Migration(database, other), ENCODER.space).added)
        )
        thread.start()
        thread.join()
    assert thread_result == [True]


class TestAnOperatorThatSlept:
    """Its session was ended meanwhile, so that another operator could do everything."""

    def test_in_the_recall_probe_does_not_label_the_old_vectors_as_new(self, same_dimensions, settings, monkeypatch):
        fill(Migration(same_dimensions, settings))
        measured = settings.model_copy(update={"quality_gate": "off", "search_probes": None})
        original = search_effort.least_effort

        def sleep_meanwhile(*args, **keywords):
            execute(same_dimensions, END_OPERATORS)
            monkeypatch.setattr(search_effort, "least_effort", original)
            in_another_thread(lambda: swap(Migration(same_dimensions, settings)))
            return original(*args, **keywords)

        monkeypatch.setattr(search_effort, "least_effort", sleep_meanwhile)
        with pytest.raises(ChangedMeanwhile) as refused:
            swap_with_service(Migration(same_dimensions, measured), EmbeddingsService(ENCODER, measured))
        assert refused.value.exit_code == 3
        assert migrated_rightly(same_dimensions, settings)

    def test_before_adding_the_column_adds_none(self, same_dimensions, settings, monkeypatch):
        original = expand_module.require_privileges

        def sleep_meanwhile(*args, **keywords):
            monkeypatch.setattr(expand_module, "require_privileges", original)
            execute(same_dimensions, END_OPERATORS)
            in_another_thread(lambda: fill_and_swap(Migration(same_dimensions, settings)))

        monkeypatch.setattr(expand_module, "require_privileges", sleep_meanwhile)
        with pytest.raises(ChangedMeanwhile):
            expand(Migration(same_dimensions, settings), ENCODER.space)
        assert migrated_rightly(same_dimensions, settings)

    def test_while_another_has_begun_is_told_so(self, database, migration, settings, monkeypatch):
        original = expand_module.require_privileges
        done = threading.Event()

        def sleep_meanwhile(*args, **keywords):
            monkeypatch.setattr(expand_module, "require_privileges", original)
            execute(database, END_OPERATORS)
            held = threading.Event()

            def operate():
                with operating(database, settings, "another act"):
                    held.set()
                    done.wait(30)

            threading.Thread(target=operate).start()
            assert held.wait(30)

        monkeypatch.setattr(expand_module, "require_privileges", sleep_meanwhile)
        try:
            with pytest.raises(OperatorBusy, match="another act"):
                expand(migration, ENCODER.space)
        finally:
            done.set()
        assert "embedding_384" not in columns_of(database)

    def test_in_the_backfill_does_not_write_into_the_column_that_took_the_name(self, same_dimensions, settings):
        expand(Migration(same_dimensions, settings), ENCODER.space)
        execute(same_dimensions, "UPDATE segments SET embedding = NULL WHERE id <= 50")

        class Sleepy(HashingEncoder):
            def encode(self, tokens, *, batch_size=None):  # noqa: ARG002
                if require_table(Migration(same_dimensions, settings)).phase == "expanded":
                    in_another_thread(lambda: fill_and_swap(Migration(same_dimensions, settings)))
                return super().encode(tokens)

        assert backfill(Migration(same_dimensions, settings), Sleepy()).pending_after == 0
        assert migrated_rightly(same_dimensions, settings)
        assert scalar(same_dimensions, "SELECT count(*) FROM segments WHERE embedding_384 IS NULL") == 50


def test_an_index_of_the_right_name_on_another_column_is_not_taken_for_ours(database):
    execute(database, "CREATE INDEX ours ON segments (start_sec)")
    statement = text("CREATE INDEX CONCURRENTLY ours ON segments USING hnsw (embedding vector_cosine_ops)")
    with pytest.raises(ChangedMeanwhile, match="not on column 'embedding'"):
        build_concurrently(database, SEGMENTS, "ours", statement, column="embedding")


def test_an_operator_inside_an_operator_is_the_same(database, settings):
    with operating(database, settings, "migrate") as outer, operating(database, settings, "expand") as inner:
        assert inner is outer
        assert scalar(database, ADVISORY_LOCKS) == 1
    wait_until(lambda: scalar(database, ADVISORY_LOCKS) == 0)


def in_another_thread(act):
    """Run `act` as somebody else, to its end."""
    failures = []

    def work():
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
