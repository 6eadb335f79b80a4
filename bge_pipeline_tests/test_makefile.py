"""`make clean` leaves data alone, `make clean-data` asks, and `make help` names every target."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_pipeline_tests.roads import ROOT, typed

MAKEFILE = ROOT / "Makefile"
CACHES = [".venv", ".pytest_cache", ".ruff_cache", ".mypy_cache", "build", "dist", "site", "bge_pipeline.egg-info"]

Make = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what `make` may have left in a clone, and data."""
    for name in [*CACHES, ".bge-pipeline/postgres", ".bge-pipeline/demo/postgres", "bge_pipeline"]:
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def make(clone: Path) -> Make:
    """Runs `make` there; `answer` is typed at a terminal, None is cron's empty input."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")

    def run(*arguments: str, answer: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        with typed(answer) as stdin:
            return subprocess.run(
                [program, "--file", str(MAKEFILE), *arguments],
                cwd=clone,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={"PATH": os.environ["PATH"]} | variables,
                timeout=30,
                check=False,
            )

    return run


def left(clone: Path) -> set[str]:
    return {path.name for path in clone.iterdir()}


def test_clean_removes_what_can_be_made_again_and_no_data(make: Make, clone: Path) -> None:
    assert make("clean").returncode == 0

    assert left(clone) == {".bge-pipeline", "bge_pipeline"}
    assert (clone / ".bge-pipeline/demo/postgres").exists()


@pytest.mark.parametrize(
    ("arguments", "answer", "deletes"),
    [(["YES=1"], None, True), ([], "y", True), ([], "n", False), ([], "", False), ([], None, False)],
    ids=["YES=1", "y", "n", "nothing", "no terminal"],
)
def test_clean_data_deletes_data_when_somebody_says_so(
    make: Make, clone: Path, arguments: list[str], answer: str | None, deletes: bool
) -> None:
    done = make("clean-data", *arguments, answer=answer)

    assert (done.returncode == 0) is deletes, done.stdout
    assert (".bge-pipeline" not in left(clone)) is deletes
    assert left(clone) >= {".venv", "bge_pipeline"}


def test_clean_data_refuses_while_a_server_works_there(make: Make, clone: Path) -> None:
    file = clone / ".bge-pipeline/demo/postgres/postmaster.pid"
    with subprocess.Popen(["sleep", "600"]) as server:
        try:
            file.write_text(f"{server.pid}\n{file.parent}\n")
            refused = make("clean-data", "YES=1")
        finally:
            server.kill()

    assert refused.returncode != 0
    assert f"process {server.pid}" in refused.stdout
    assert file.exists()
    assert make("clean-data", "YES=1").returncode == 0  # a killed server's file is no server
    assert ".bge-pipeline" not in left(clone)


def test_help_names_every_target_and_needs_nothing_but_awk(make: Make, tmp_path: Path) -> None:
    (programs := tmp_path / "programs").mkdir()
    awk = shutil.which("awk")
    assert awk is not None
    (programs / "awk").symlink_to(awk)
    (declared,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE.read_text(), re.MULTILINE)

    said = make("help", PATH=str(programs))

    assert said.returncode == 0, said.stdout
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines] == declared.split()
    assert {line[:17].strip() for line in lines} == set(declared.split())
