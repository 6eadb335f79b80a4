"""Secrets that nothing else looks like, and the search for them in output, files, databases and lists of processes."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sql import quote as quoted

PASSWORD = "canaryPassword9f2c"
DAGSTER_PASSWORD = "canaryDagster51bd"
SSL_PASSWORD = "canarySsl7a40"
OPTION = "canaryOption33e8"
WRONG = "canaryWrong0d6e"
API_KEY = "canaryApiKey84c1"
EXPANSION_KEY = "canaryExpansion2b97"
CANARIES = (PASSWORD, DAGSTER_PASSWORD, SSL_PASSWORD, OPTION, WRONG, API_KEY, EXPANSION_KEY)

_BLANKS = re.compile(rb"\s+")
_FRAMES = "│║┃|".encode()
_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""
_CATALOGS = ("pg_description", "pg_proc", "pg_attrdef", "pg_trigger", "pg_db_role_setting", "pg_stat_activity")


@dataclass
class Sightings:
    """Where a canary was found: the place, and which."""

    found: list[tuple[str, str]] = field(default_factory=list)
    searched: int = 0

    def look(self, place: str, content: str | bytes) -> None:
        """Search a text or a file, also as a terminal breaks lines, and in the usual encodings."""
        self.searched += 1
        raw = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        joined = _BLANKS.sub(b"", raw).translate(None, _FRAMES)
        for canary in CANARIES:
            if any(form in raw or form in joined for form in _forms(canary)):
                self.found.append((place, canary))

    def look_into_folder(self, folder: Path, *, but: tuple[str, ...] = ()) -> None:
        """Search every file below a folder but those of these names."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in but:
                self.look(str(path), path.read_bytes())

    def look_into_database(self, database: Database) -> None:
        """Search every row of every table, the comments, the functions, and what the sessions run."""
        with database.autocommit() as connection:
            tables = [quoted(*row) for row in connection.execute(text(_TABLES))]
            for table in (*tables, *_CATALOGS):
                for (row,) in connection.execute(text(f"SELECT t::text FROM {table} t".replace(":", "\\:"))):
                    self.look(f"{database.url.database}: {table}", row)

    @contextmanager
    def watching_processes(self) -> Iterator[None]:
        """Search the command lines of all processes of this machine, time and again, as everybody may."""
        over = threading.Event()

        def watch() -> None:
            known: set[int] = set()
            while not over.wait(0.05):
                pids = set(psutil.pids())
                for pid in pids - known:
                    self._look_at_process(pid)
                known = pids
            for pid in psutil.pids():  # a process that has replaced its arguments since
                self._look_at_process(pid)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look_at_process(self, pid: int) -> None:
        try:
            self.look(f"process {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            return  # it has ended

    def assert_none(self) -> None:
        """Nothing was found, and something was searched."""
        assert self.searched
        assert not self.found


def _forms(canary: str) -> Iterator[bytes]:
    """As it is, as in a URL, in hexadecimal digits, and in base64 at whatever place it begins."""
    raw = canary.encode()
    yield raw
    yield quote(canary).encode()
    yield raw.hex().encode()
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + raw)
        yield whole[(0, 2, 3)[shift] : -4]  # without the letters that the neighbours have a share in
