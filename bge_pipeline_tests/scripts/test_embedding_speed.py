"""scripts/test_embedding_speed.py: figures for every batch size, as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bge_pipeline_tests.roads import ROOT


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/test_embedding_speed.py", "--model", "hashing", "--rounds", "1", *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_measures_every_batch_size_against_the_baseline(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\n\nanother text\na third\n")

    done = measure("--file", str(texts), "--batch-sizes", "2", "64", "--baseline", "10", "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["texts"], result["dimensions"], result["model"]) == (3, 384, "hashing")
    assert [run["batch_size"] for run in result["runs"]] == [2, 64]
    for run in result["runs"]:
        assert run["speedup"] == run["texts_per_second"] / 10


def test_it_prints_a_table_of_the_demo_corpus_and_may_demand_a_speed() -> None:
    done = measure("--texts", "32", "--batch-sizes", "8", "--require", "1e12")

    assert done.returncode == 3, done.stderr
    assert "32 texts of" in done.stdout
    assert "of 40 texts/s" in done.stdout


def test_numbers_that_make_no_sense_are_refused() -> None:
    assert measure("--batch-sizes", "0").returncode == 2
