"""A PostgreSQL server for a test that restarts it or needs its own settings, beside the one that all others share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.engine import URL

from bge_pipeline_tests.postgres_programs import named_programs, start_server
from bge_pipeline_tests.support import administer


class OwnServer:
    """A server in a folder of its own; `stop` before the folder goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = start_server(folder, named_programs())

    @classmethod
    def temporary(cls) -> OwnServer:
        """A server in a new folder outside pytest's own, which the server's user could not enter."""
        return cls(Path(tempfile.mkdtemp(prefix="bge-pipeline-tests-own-")))

    @property
    def url(self) -> URL:
        """URL of its database `postgres`."""
        return make_url(self._server.get_uri()).set(drivername="postgresql+psycopg2")

    @property
    def log(self) -> str:
        """What it has written to its log."""
        return (self.folder / "log").read_text()

    def set(self, **settings: str) -> None:
        """Change settings, and restart so that all of them hold."""
        for name, value in settings.items():
            administer(self.url, f"ALTER SYSTEM SET {name} = '{value}'")
        self.restart()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """Stop, unless it has stopped by itself."""
        self._server.stop()

    def move_log_to(self, folder: Path) -> None:
        """Keep the write-ahead log in that folder, which must not be there yet."""
        self.stop()
        log = self.folder / "pg_wal"
        subprocess.run(["cp", "-a", str(log), str(folder)], check=True)
        shutil.rmtree(log)
        log.symlink_to(folder)
        self._server.ensure_postgres_running()

    def standby(self, *, follows: bool = False) -> OwnServer:
        """Another server on a copy of the data, which takes no changes, as a replica does; it may follow this one."""
        copy = Path(tempfile.mkdtemp(prefix="bge-pipeline-tests-standby-"))
        self._server.stop()
        subprocess.run(["cp", "-a", f"{self.folder}/.", str(copy)], check=True)
        self._server.ensure_postgres_running()
        (copy / ".handle_pids.json").unlink(missing_ok=True)
        (copy / "standby.signal").touch()
        if follows:
            with (copy / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"primary_conninfo = 'host={self.url.query['host']} user=postgres'\n")
        return OwnServer(copy)

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self._server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
