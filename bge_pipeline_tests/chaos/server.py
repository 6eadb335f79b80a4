"""The server of a chaos run: it can be stopped like a machine that loses its power, and it logs each of our statements."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from bge_pipeline_tests.own_server import OwnServer

_PREFIX = re.compile(r"^(\d+)\|([^|]*)\|")


@dataclass(frozen=True)
class Sighting:
    """A line of a statement that a backend has begun."""

    pid: int
    application: str
    line: str


class ChaosServer(OwnServer):
    """An embedded server whose log says who runs what."""

    def prepare(self) -> None:
        """Log every statement, with the process and the application."""
        self.set(log_statement="all", log_line_prefix="%p|%a|", fsync="off", max_connections="60")

    def crash(self) -> None:
        """Stop at once, without a checkpoint, and start again: PostgreSQL recovers from its log."""
        postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(30)
        self._server.ensure_postgres_running()

    def log_size(self) -> int:
        """Bytes in the log, from which `sightings` can begin."""
        return (self.folder / "log").stat().st_size

    def sightings(self, offset: int) -> Iterator[Sighting | None]:
        """The lines of our own sessions as they are written, for ever; None when there is nothing new."""
        pid, application = 0, ""
        rest = b""
        with (self.folder / "log").open("rb") as log:
            log.seek(offset)
            while True:
                found = log.read(1 << 20)
                if not found:
                    yield None
                    continue
                *lines, rest = (rest + found).split(b"\n")
                for line in lines:
                    decoded = line.decode(errors="replace")
                    if begins := _PREFIX.match(decoded):
                        pid, application = int(begins[1]), begins[2]
                    if application.startswith("bge-pipeline"):
                        yield Sighting(pid, application, decoded)


def end_backend(pid: int) -> bool:
    """What `pg_terminate_backend` does, without the time that a connection takes; whether it was still there."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pids: list[int], seconds: float = 30) -> None:
    """Wait for processes to end."""
    end = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < end, f"processes {pids} do not end"
        time.sleep(0.02)
