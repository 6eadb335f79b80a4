"""Tables whose key has several columns, of tenants and of chunks, go through every phase and are searched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

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
from bge_pipeline_tests.roads import environment, run_command
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


@pytest.fixture(params=COMPOSITE_KEYS)
def key(request, database):
    give_composite_key(database, request.param)
    return request.param


def wrong(database, column="embedding"):
    return wrong_vectors(database, ENCODER, column, key="ctid")


def rows_of(database, key, limit=12):
    """Key and text of some rows, whose key's values are tuples as a search gives them."""
    return [
        (tuple(row[1:]), row[0])
        for row in execute(database, f"SELECT text, {key} FROM segments ORDER BY md5(text) LIMIT {limit}")
    ]


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


SLOW_WRITES = (
    "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END $$",
    "CREATE TRIGGER dawdle BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION dawdle()",
)


@pytest.mark.thorough
def test_the_command_is_killed_and_resumed_searches_rolls_back_and_retires(database, make_settings, tmp_path, key):
    settings = make_settings(target_id_column=key)
    variables = {"TARGET_ID_COLUMN": key, "QUALITY_GATE": "off", "BACKFILL_BATCH_ROWS": "10"}

    def command(*arguments):
        done = run_command(settings, tmp_path, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    expand(Migration(database, settings), ENCODER.space)
    for statement in SLOW_WRITES:
        execute(database, statement)
    process = subprocess.Popen(
        [sys.executable, "-m", "bge_pipeline", "migrate"],
        env=environment(settings, **variables), cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    embedded = "SELECT count(embedding_384) FROM segments"
    wait_until(lambda: scalar(database, embedded) > 0, 120)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    execute(database, "DROP TRIGGER dawdle ON segments")
    assert 0 < scalar(database, embedded) < 300
    assert wrong(database, "embedding_384") == []
    ((row_id, text), *_) = rows_of(database, key)
    where = " AND ".join(f"{name} = :{name}" for name in key.split(","))
    execute(
        database,
        f"INSERT INTO segments_embedding_quarantine SELECT {key}, 'bad', now(), md5(convert_to(text, 'UTF8'))\\:\\:uuid "
        f"FROM segments WHERE {where} AND embedding_384 IS NULL",
        **dict(zip(key.split(","), row_id, strict=True)),
    )
    aside = scalar(database, "SELECT count(*) FROM segments_embedding_quarantine")

    command("migrate")
    status = json.loads(command("status", "--json"))
    assert (status["phase"], status["embedded"], status["quarantined"]) == ("swapped", 300 - aside, aside)
    listed = json.loads(command("quarantine", "list", "--json"))["latest"]
    assert [json.loads(row["row_id"]) for row in listed] == [list(map(str, row_id))] * aside
    for row in listed:
        retried = json.loads(command("quarantine", "retry", row["row_id"], "--json"))
        assert (retried["released"], retried["left"]) == (1, 0)
    assert wrong(database) == []
    assert scalar(database, "SELECT count(embedding) FROM segments") == 300

    found = json.loads(command("search", text, "--json"))["results"]
    assert list(map(str, row_id)) in [list(map(str, hit["id"])) for hit in found]
    assert f"[{json.dumps(list(map(str, row_id)), ensure_ascii=False)}]" in command("search", text)
    command("rollback", "--yes")
    assert json.loads(command("status", "--json"))["dimensions"] == 1_536
    command("migrate", "--yes")
    command("retire", "--yes")
    assert json.loads(command("status", "--json"))["phase"] == "retired"
