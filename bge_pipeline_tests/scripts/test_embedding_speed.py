"""scripts/test_embedding_speed.py: texts of the table, every batch size, reranking, memory, as text and as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import ROOT, environment
from bge_pipeline_tests.support import execute


def measure(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/test_embedding_speed.py", *arguments],
        env=os.environ | {"EMBEDDING_MODEL": "hashing", "EMBEDDING_BACKEND": "torch"} | variables,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_it_measures_every_batch_size_against_the_baseline(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\n\nanother text\na third\none text\n")

    done = measure("--file", str(texts), "--batch-sizes", "2", "64", "--baseline", "10", "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["texts"], result["distinct_texts"], result["model"]) == (4, 3, "hashing")
    assert [run["batch_size"] for run in result["runs"]] == [2, 64]
    for run in result["runs"]:
        assert run["speedup"] == run["texts_per_second"] / 10
    assert result["reranking"] is None
    assert result["reranking_not_measured"].startswith("ENABLE_RERANKER is not set")
    assert result["device_memory_bytes"] is None
    assert result["process_memory_bytes"] > 10**7


@pytest.mark.pgvector
def test_it_takes_the_texts_of_the_table(database: Database, settings: Settings) -> None:
    execute(database, "UPDATE segments SET text = 'nothing but this'")
    variables = environment(settings)

    done = measure("--texts", "100", "--batch-sizes", "8", "--json", **variables)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["source"] == '"public"."segments"'
    assert (result["texts"], result["distinct_texts"], result["mean_characters"]) == (100, 1, len("nothing but this"))

    missing = measure("--texts", "100", **variables | {"TARGET_TABLE": "nowhere"})
    assert missing.returncode == 2
    assert 'the target table "public"."nowhere" does not exist' in missing.stderr


@pytest.mark.thorough
def test_it_counts_pairs_of_the_reranker_and_the_memory_of_the_process(
    tiny_sentence_model: Path, tiny_cross_encoder: Path
) -> None:
    options = ["--demo", "--texts", "40", "--batch-sizes", "8", "--queries", "5", "--passages", "30"]
    models = ["--model", str(tiny_sentence_model), "--reranker", str(tiny_cross_encoder)]

    done = measure(*options, *models, "--json", EMBEDDING_DIMENSIONS="32", EMBEDDING_DEVICE="cpu")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["reranking"]
    assert (found["model"], found["queries"], found["documents"]) == (str(tiny_cross_encoder), 5, 30)
    assert found["pairs_per_second"] == pytest.approx(150 / found["seconds"])
    assert found["milliseconds_per_query"] == pytest.approx(1_000 * found["seconds"] / 5)


@pytest.mark.thorough
def test_a_reranker_that_cannot_be_had_is_said_and_the_rest_is_measured() -> None:
    done = measure("--demo", "--texts", "8", "--batch-sizes", "8", "--reranker", "/no/such/folder", HF_HUB_OFFLINE="1")

    assert done.returncode == 0, done.stderr
    assert "reranking: not measured: no reranker could be loaded" in done.stdout
    assert "there is no such folder" in done.stderr


def test_it_prints_a_table_of_the_demo_corpus_and_may_demand_a_speed() -> None:
    done = measure("--texts", "32", "--batch-sizes", "8", "--require", "1e12")

    assert done.returncode == 3, done.stderr
    assert "32 texts of the demo corpus" in done.stdout
    assert "of 40 texts/s" in done.stdout
    assert re.search(r"memory, at most: \d\.\d\d GB in this process", done.stdout)


def test_what_it_measures_unasked_is_what_was_promised() -> None:
    help_text = " ".join(measure("--help").stdout.split())

    for promised in ("texts of the table (default: 5000)", "default: [32, 64, 128, 256]", "default: 40.0 texts/s"):
        assert promised in help_text
    assert "queries to rerank for (default: 50)" in help_text
    assert "passages for each (default: 200)" in help_text


def test_numbers_that_make_no_sense_are_refused() -> None:
    assert measure("--batch-sizes", "0").returncode == 2
