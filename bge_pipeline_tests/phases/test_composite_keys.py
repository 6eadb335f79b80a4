"""Tables whose key has several columns, of tenants and of chunks, go through every phase and are searched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bge_pipeline.cli import app
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.quarantine import quarantine_row
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.compare_models import compare_models
from bge_pipeline.phases.compare_search import compare_search
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import swap
from bge_pipeline.quality.judgements import load_judged_queries
from bge_pipeline.search import Retriever
from bge_pipeline_tests.kinds import kinds
from bge_pipeline_tests.phases.test_kill import BACKFILL
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import (
    COMPOSITE_KEYS,
    ENCODER,
    agreed,
    execute,
    give_composite_key,
    scalar,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector


@pytest.fixture(params=kinds({names: names for names in COMPOSITE_KEYS}, "tenant_id,doc_id"))
def key(request, database):
    give_composite_key(database, request.param)
    return request.param


def wrong(database, column="embedding"):
    return wrong_vectors(database, ENCODER, column, key="ctid")


def rows_of(database, key, where="true", limit=12):
    """Key and text of some rows, the key a tuple as a search gives it."""
    select = f"SELECT text, {key} FROM segments WHERE {where} ORDER BY md5(text) LIMIT {limit}"
    return [(tuple(row[1:]), row[0]) for row in execute(database, select)]


def test_all_phases(database, make_settings, tmp_path, key):
    rows = rows_of(database, key)
    judgements = tmp_path / "judged.jsonl"
    lines = [{"query": text, "relevant": [list(map(str, row_id))]} for row_id, text in rows]
    judgements.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = make_settings(target_id_column=key, benchmark_texts=50, eval_queries=judgements)
    migration = Migration(database, settings)
    service = EmbeddingsService(ENCODER, settings)
    planned = plan(migration, service)
    assert planned.obstacles == ()
    assert planned.writing is not None
    assert compare_models(migration, ["hashing"], judged=load_judged_queries(judgements)).candidates[0].quality > 0.9

    expand(migration, ENCODER.space)
    with database.autocommit() as connection:
        kind = require_table(migration).table.id_kind
        ranges = cut_ranges(connection, TargetTable.from_settings(settings), kind, 70)
    assert [backfill(migration, ENCODER, id_range).rows for id_range in ranges] == [70, 70, 70, 70, 20]
    swapped = swap(migration, service)
    assert swapped.gate is not None
    assert swapped.gate.passed
    status = read_status(migration)
    assert (status.phase, status.rows, status.embedded, status.pending) == ("swapped", 300, 300, 0)
    assert wrong(database) == []

    retriever = Retriever(database, settings, service)
    for mode in ("dense", "lexical", "hybrid"):
        found = [
            row_id in [hit.id for hit in retriever.search(text, mode=mode, top_k=5).results] for row_id, text in rows
        ]
        assert sum(found) > len(rows) * 0.8, mode
    assert compare_search(migration, service, [rows[0][1]]).pairs[0].new

    where = " AND ".join(f"{name} = :{name}" for name in key.split(","))
    values = dict(zip(key.split(","), rows[0][0], strict=True))
    execute(database, f"UPDATE segments SET text = 'an oryx by the river' WHERE {where}", **values)
    embed_pending(migration)
    assert wrong(database) == []
    assert retriever.search("oryx by the river").results[0].id == rows[0][0]

    rollback(migration)
    assert read_status(migration).dimensions == 1_536
    swap(Migration(database, agreed(migration)), service)
    retire(migration)
    assert read_status(migration).phase == "retired"
    assert wrong(database) == []


@pytest.mark.parametrize(
    "key", ["tenant_id,doc_id", pytest.param("document_id,chunk_no", marks=pytest.mark.thorough)], indirect=True
)
def test_the_command_goes_on_after_a_kill_searches_rolls_back_and_retires(
    database, make_settings, tmp_path, monkeypatch, key
):
    settings = make_settings(target_id_column=key)
    variables = environment(settings, TARGET_ID_COLUMN=key, QUALITY_GATE="off", BACKFILL_BATCH_ROWS="10")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    migration = Migration(database, settings)
    expand(migration, ENCODER.space)
    embedded = "SELECT count(embedding_384) FROM segments"
    process = subprocess.Popen([sys.executable, "-c", BACKFILL], env=variables)
    wait_until(lambda: scalar(database, embedded) > 0 or process.poll() is not None, 120)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < scalar(database, embedded) < 300
    assert wrong(database, "embedding_384") == []
    ((row_id, text),) = rows_of(database, key, where="embedding_384 IS NULL", limit=1)
    with database.transaction() as connection:
        (batch,) = read_pending(connection, migration.target, "embedding_384", 300)
        assert quarantine_row(connection, migration.target, batch, batch.texts.index(text), "no words")

    def command(*arguments):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    command("migrate")
    status = json.loads(command("status", "--json"))
    assert (status["phase"], status["embedded"], status["quarantined"]) == ("swapped", 299, 1)
    (listed,) = json.loads(command("quarantine", "list", "--json"))["latest"]
    assert json.loads(listed["row_id"]) == list(map(str, row_id))
    retried = json.loads(command("quarantine", "retry", listed["row_id"], "--json"))
    assert (retried["released"], retried["left"]) == (1, 0)
    assert wrong(database) == []
    assert scalar(database, "SELECT count(embedding) FROM segments") == 300

    found = json.loads(command("search", text, "--json"))["results"]
    assert json.loads(json.dumps(row_id, default=str)) in [hit["id"] for hit in found]
    command("rollback", "--yes")
    assert json.loads(command("status", "--json"))["dimensions"] == 1_536
    command("migrate", "--yes")
    command("retire", "--yes")
    assert json.loads(command("status", "--json"))["phase"] == "retired"
