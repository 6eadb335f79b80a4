"""The folder of a run of the tests: locked as long as the run lives, and removed by the next one where the run was killed."""

from __future__ import annotations

import fcntl
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

_PREFIX = "bge-tests-"
_LOCK = "held"
_STOP_SECONDS = 20


def make_run_folder(parent: Path) -> tuple[Path, IO[str]]:
    """A new folder, and its locked file, to be kept open by the run."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = (folder / f"{_LOCK}.new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    Path(lock.name).rename(folder / _LOCK)  # nobody finds it unlocked
    return folder, lock


def remove_left_folders(parent: Path) -> None:
    """Stop the servers in folders whose run was killed, and remove these; one without a file to lock is nobody's to judge."""
    for file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        # Its run lives, another run removes it at this moment, it is another user's, or its server does not end.
        with suppress(OSError, psutil.TimeoutExpired), file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for postmaster in file.parent.rglob("postmaster.pid"):
                _stop(postmaster)
            shutil.rmtree(file.parent, ignore_errors=True)


def _stop(postmaster: Path) -> None:
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(int(postmaster.read_text().split()[0]))
        if Path(server.cwd()) == postmaster.parent.resolve():
            server.send_signal(signal.SIGQUIT)
            server.wait(_STOP_SECONDS)
