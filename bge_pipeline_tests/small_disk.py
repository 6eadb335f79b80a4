"""A file system of a few megabytes that really is full when a test says so, for a part of a server's data."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory that belongs to the owner of a server's data; `remove` it when the server has stopped.

    Args:
        owner: a file or folder of the user that the server runs as.
        megabytes: how large it is.
    """

    def __init__(self, owner: Path, megabytes: int) -> None:
        if os.name != "posix" or os.geteuid() != 0:
            pytest.skip("only root may mount a file system")
        user = owner.stat()
        self.folder = Path(tempfile.mkdtemp(prefix="bge-pipeline-tests-disk-"))
        options = f"size={megabytes}m,mode=700,uid={user.st_uid},gid={user.st_gid}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.folder.rmdir()
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, *, but_bytes: int) -> None:
        """Take all space but so much."""
        with (self.folder / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, self.free_bytes - but_bytes)

    def make_space(self) -> None:
        """Give back what was taken."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.folder)], check=True)
        self.folder.rmdir()
