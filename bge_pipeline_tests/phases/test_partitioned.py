"""A declaratively partitioned table is migrated whole, whatever divides it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.size import table_bytes
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import LockNotAcquired, TargetTableError
from bge_pipeline.phases import rollback as rollback_module
from bge_pipeline.phases import swap as swap_module
from bge_pipeline.phases.application_vectors import compare_application_vectors
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.discover import discover
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.search import Retriever, create_text_index
from bge_pipeline_tests.partitions import PARTITIONS, divide
from bge_pipeline_tests.roads import environment, run_command
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    Wrapped,
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

INDEXES = """
SELECT t.relname::text, c.relname::text, i.indisvalid, c.relispartition FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid JOIN pg_am m ON m.oid = c.relam
WHERE m.amname = 'hnsw' ORDER BY 1, 2
"""
OLD = "SELECT id, md5(embedding::text) FROM segments ORDER BY 1"


def hnsw_of(database):
    """Indexes of both columns by table, each with whether it is valid and attached to another."""
    found = {}
    for table, *index in execute(database, INDEXES):
        found.setdefault(table, []).append(tuple(index))
    return found


@pytest.mark.parametrize(
    "layout", ["range", *(pytest.param(layout, marks=pytest.mark.thorough) for layout in ("hash", "list", "time"))]
)
def test_the_whole_way_there_and_back(database, make_settings, layout):
    divide(database, layout)
    settings = make_settings(quality_gate="enforce", benchmark_texts=50)
    service = EmbeddingsService(ENCODER, settings)
    before, old = schema_of(database), execute(database, OLD)
    said = plan(Migration(database, settings), service)
    assert said.obstacles == ()
    assert (said.rows, said.pending, said.old_indexes[0].split()[0]) == (300, 300, "old_name")
    assert said.table_bytes > 300 * 6_000
    told = " ".join(said.notices)
    assert f"{len(PARTITIONS[layout])} partitions are migrated together" in told
    assert 'child table is missing column "embedding_384"' in told
    assert ("no index keeps 'id' apart" in told) == (layout == "time")

    result = migrate(Migration(database, settings), service)
    assert result.backfill.rows == 300
    assert result.swap.exchanged
    assert result.swap.gate.passed
    assert result.swap.index_name == "old_name"
    assert result.swap.index_bytes > 0
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert pending_ids(database, "embedding") == []
    status = read_status(Migration(database, settings))
    assert (status.phase, status.embedded, status.pending, status.dimensions) == ("swapped", 300, 0, 384)
    assert (status.index.name, status.index.valid, status.warnings) == ("old_name", True, ())
    indexes = hnsw_of(database)
    for partition in PARTITIONS[layout]:
        assert [index[1:] for index in indexes[partition]] == [(True, True)] * 2
        assert columns_of(database, partition)["embedding"] == "vector(384)"
    again = migrate(Migration(database, settings), service)
    assert (again.backfill.rows, again.swap.index_built, again.swap.exchanged) == (0, False, False)

    execute(database, "UPDATE segments SET text = 'Changed words.' WHERE id IN (5, 150, 250)")
    execute(database, "INSERT INTO segments (text, created_at) VALUES ('A new row.', '2026-02-02')")
    assert pending_ids(database, "embedding") == [5, 150, 250, 301]
    assert embed_pending(Migration(database, settings)).backfill.rows == 4
    assert wrong_vectors(database, ENCODER, "embedding") == []

    text_index = create_text_index(database, settings)
    assert text_index.built
    assert not create_text_index(database, settings).built
    words = scalar(database, "SELECT text FROM segments WHERE id = 120")
    retriever = Retriever(database, settings, service)
    for mode in ("dense", "hybrid", "lexical"):
        assert 120 in [hit.id for hit in retriever.search(words, mode=mode, top_k=20).results], mode
    execute(database, f'DROP INDEX "{text_index.name}"')

    execute(database, "DELETE FROM segments WHERE id = 301")
    assert rollback(Migration(database, settings)).rows_without_old_vector == 3
    execute(database, "UPDATE segments SET text = 'once more' WHERE id = 9")
    assert [row for row in execute(database, OLD) if row[0] not in (5, 150, 250)] == [
        row for row in old if row[0] not in (5, 150, 250)
    ]
    assert collapse(Migration(database, settings)) == "embedding_384"
    assert schema_of(database) == before
    for partition in PARTITIONS[layout]:
        assert scalar(database, f"SELECT reloptions FROM pg_class WHERE relname = '{partition}'") is None
        assert [index[1:] for index in hnsw_of(database)[partition]] == [(True, True)]


def test_the_command_is_killed_in_the_middle_and_finishes_when_it_is_run_again(database, settings, tmp_path):
    divide(database)
    slowly = environment(settings, BACKFILL_BATCH_ROWS="10", MAX_ROWS_PER_SECOND="60", QUALITY_GATE="off")
    process = subprocess.Popen(
        [sys.executable, "-m", "bge_pipeline", "migrate", "--yes"], env=slowly, cwd=tmp_path, stdin=subprocess.DEVNULL
    )
    wait_until(lambda: "embedding_384" in columns_of(database), 120)
    wait_until(lambda: scalar(database, "SELECT count(embedding_384) FROM segments") > 20, 120)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 20 < scalar(database, "SELECT count(embedding_384) FROM segments") < 300

    finished = run_command(settings, tmp_path, "migrate", "--yes", QUALITY_GATE="off")
    assert finished.returncode == 0, finished.stderr
    status = read_status(Migration(database, settings))
    assert (status.phase, status.embedded, status.index.name) == ("swapped", 300, "old_name")
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_retire_gives_the_space_of_every_partition_back(database, make_settings):
    divide(database)
    settings = make_settings(quality_gate="off")
    migrate(Migration(database, settings), EmbeddingsService(ENCODER, settings))
    with database.autocommit() as connection:
        before = table_bytes(connection, SEGMENTS)
    result = retire(Migration(database, settings), reclaim=True)
    assert result.dropped_column == "embedding_1536"
    assert result.table_bytes_after < before / 2
    assert "embedding_1536" not in columns_of(database, "middle_odd")
    assert read_status(Migration(database, settings)).phase == "retired"
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_updates_stay_in_the_page_of_their_partition(database, make_settings):
    divide(database, "hash")
    execute(
        database,
        "INSERT INTO segments (text) SELECT 'row ' || n || ' ' || repeat('word ', 100 + n % 40) FROM generate_series(1, 3000) n",
    )
    with database.autocommit() as connection:
        connection.exec_driver_sql("VACUUM FULL ANALYZE segments")
    settings = make_settings()
    expand(Migration(database, settings), ENCODER.space)
    result = backfill(Migration(database, settings), ENCODER)
    assert (result.rows, result.pending_after) == (3_300, 0)
    # A turn of so few pages is shorter than a commit, so that room comes late; without the turns it were one in thirty.
    assert result.in_page > 0.4 * 3_300
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_discover_lists_the_table_once_with_the_rows_and_an_index_of_its_partitions(database):
    divide(database, "time", index=None)
    execute(database, "CREATE INDEX alone ON month_2 USING hnsw (embedding vector_cosine_ops)")
    (found,) = discover(database)
    assert found.name == "public.segments.embedding"
    assert (found.found.rows, found.found.index, found.text) == (300, "alone (hnsw)", "text")
    assert found.settings()["TARGET_ID_COLUMN"] == "id,created_at"


def test_each_partition_has_the_lists_of_its_rows(database, migration):
    divide(
        database, index="CREATE INDEX old_name ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 5)"
    )
    execute(database, "INSERT INTO segments (text) SELECT 'row ' || n FROM generate_series(1, 2950) n")
    fill_and_swap(migration)
    options = "SELECT t.relname::text, c.reloptions::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
    options += "JOIN pg_class t ON t.oid = i.indrelid WHERE c.reloptions IS NOT NULL AND pg_get_indexdef(c.oid) ~ '[(]embedding '"
    lists = {table: option for table, option in execute(database, options) if table in PARTITIONS["range"]}
    assert lists == {name: "{lists=3}" if name == "the_rest" else "{lists=1}" for name in PARTITIONS["range"]}


def test_a_part_that_is_one_partition_gets_vectors_of_its_own(database, make_settings):
    divide(database)
    with database.autocommit() as connection, pytest.raises(TargetTableError) as refused:
        describe_table(connection, replace(SEGMENTS, table="low"))
    condition = refused.value.next_step.split("TARGET_WHERE=")[1].split(" where only")[0]
    settings = make_settings(target_where=condition, quality_gate="off")
    result = migrate(Migration(database, settings), EmbeddingsService(ENCODER, settings))
    assert (result.backfill.rows, result.swap.exchanged) == (100, False)
    assert pending_ids(database) == list(range(101, 301))
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_a_text_of_several_columns_is_watched_in_every_partition(database, make_settings):
    divide(database)
    migration = Migration(database, make_settings(target_text="coalesce(video_id, '') || ' ' || text"))
    fill_and_swap(migration)
    assert read_status(migration).warnings == ()
    execute(database, "UPDATE segments SET video_id = 'other' WHERE id IN (1, 120, 299)")
    assert pending_ids(database, "embedding") == [1, 120, 299]
    assert embed_pending(migration).backfill.rows == 3


def test_the_next_migration_keeps_both_columns_of_every_partition_current(database, migration, make_settings):
    divide(database)
    fill_and_swap(migration)
    retire(migration)
    following = HashingEncoder(256)
    second = Migration(database, make_settings(embedding_dimensions=256))
    expand(second, following.space, begin_next=True)
    execute(database, "UPDATE segments SET text = 'both' WHERE id IN (1, 120, 299)")
    backfill(second, following)
    swap(second, following)
    assert read_status(second).warnings == ()
    assert pending_ids(database, "embedding") == pending_ids(database, "embedding_384") == []
    assert wrong_vectors(database, following, "embedding") == []
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


def test_rows_that_come_at_the_last_moment_are_embedded_under_the_lock(database, migration, monkeypatch):
    divide(database)
    fill(migration)
    lock_out = swap_module.lock_out_writers

    def a_row_comes_first(*arguments):
        execute(database, "UPDATE segments SET text = 'late' WHERE id IN (1, 120, 299)")
        lock_out(*arguments)

    monkeypatch.setattr(swap_module, "lock_out_writers", a_row_comes_first)
    result = swap(migration)
    assert (result.exchanged, result.last_rows) == (True, 3)
    assert pending_ids(database, "embedding") == []
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_a_partition_that_is_busy_behind_the_exchange_fails_neither_the_swap_nor_the_way_back(
    database, migration, monkeypatch, caplog
):
    def busy(*_):
        raise LockNotAcquired("the table was never free")

    divide(database, "list")
    for module, name in ((swap_module, "take_over_partition_names"), (rollback_module, "give_back_partition_names")):
        monkeypatch.setattr(module, name, busy)
    with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
        assert fill_and_swap(migration).exchanged
        assert rollback(migration).column == "embedding"
    assert caplog.text.count("keep their names; nothing goes by them: the table was never free") == 2
    assert swap(Migration(database, migration.settings)).exchanged


def test_old_vectors_that_the_application_still_writes_are_seen_in_any_partition(database, make_settings):
    divide(database)
    migration = Migration(database, make_settings(embedding_dimensions=1536))
    encoder = HashingEncoder(1536)
    fill_and_swap(migration, encoder)
    execute(
        database,
        "UPDATE segments SET embedding = (SELECT embedding FROM segments WHERE id = 7) WHERE id IN (20, 150, 250)",
    )
    found = compare_application_vectors(migration, lambda: encoder)
    assert found.strangers == 3
    assert set(found.examples) == {"20", "150", "250"}


def test_the_key_that_an_index_keeps_apart_may_be_named_whole(database, make_settings):
    divide(database, "time")
    execute(database, "INSERT INTO segments (id, text, created_at) VALUES (5, 'a twin', '2026-04-04')")
    settings = make_settings(target_id_column="id,created_at", quality_gate="off")
    migration, service = Migration(database, settings), EmbeddingsService(ENCODER, settings)
    said = plan(migration, service)
    assert said.obstacles == ()
    assert "apart" not in " ".join(said.notices)
    assert migrate(migration, service).backfill.rows == 301
    assert wrong_vectors(database, ENCODER, "embedding") == []
    execute(database, "UPDATE segments SET created_at = '2026-02-02', text = 'moved' WHERE text = 'a twin'")
    assert embed_pending(migration).backfill.rows == 1
    found = Retriever(database, settings, service).search("moved", mode="dense", top_k=3).results
    assert [str(part)[:10] for part in found[0].id] == ["5", "2026-02-02"]


def test_a_row_that_cannot_be_embedded_is_put_aside_for_its_partition_too(database, migration):
    divide(database)
    texts = [row[0] for row in execute(database, "SELECT text FROM segments WHERE id IN (5, 120) ORDER BY id")]

    def refuse(batch):
        if set(texts) & set(batch):
            raise ValueError("cannot be embedded")

    expand(migration, ENCODER.space)
    assert backfill(migration, Wrapped(before=refuse)).quarantined == 2
    status = read_status(migration)
    assert (status.embedded, status.quarantined, status.pending) == (298, 2, 0)
    assert {row.row_id for row in status.quarantine} == {"5", "120"}
    execute(database, "UPDATE segments SET text = 'sound' WHERE id = 120")
    assert backfill(migration, ENCODER).rows == 1
    assert swap(migration).exchanged
