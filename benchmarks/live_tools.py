"""The tools of `benchmarks.live` as commands, and what the database shows of their phases while they run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg2

_LONGEST_SECONDS = 4 * 3_600
_LOOK_SECONDS = 0.05
_SHOWN = 600
# Read from the catalog, so that no tool is asked: a second vector column, a vector index that is built, and other
# dimensions under the name that search reads.
_PHASES = """
SELECT count(*) > 1 AS expanded,
       bool_or(attname = 'embedding' AND atttypmod = 384) AS swapped,
       EXISTS (SELECT FROM pg_stat_progress_create_index p JOIN pg_class c ON c.oid = p.index_relid
               JOIN pg_am m ON m.oid = c.relam
               WHERE p.relid = 'documents'::regclass AND m.amname IN ('hnsw', 'ivfflat')) AS indexing
FROM pg_attribute WHERE attrelid = 'documents'::regclass AND atttypid = 'vector'::regtype AND NOT attisdropped
"""


@dataclass(frozen=True)
class Tool:
    """A way to migrate the table; `run` takes the database's URL and an empty folder, and returns why it failed."""

    name: str
    run: Callable[[str, Path], str | None]


def ours(old_index: str, assignments: Sequence[str], *, also: str | None = None) -> Tool:
    """`bge-pipeline migrate` with OLD_INDEX=keep or drop, and with further settings as NAME=VALUE; `also` names it."""

    def run(dsn: str, home: Path) -> str | None:
        settings = {
            "DATABASE_URL": dsn,
            "TARGET_TABLE": "documents",
            "TARGET_TEXT_COLUMN": "content",
            "EMBEDDING_MODEL": "hashing",
            "QUALITY_GATE": "off",
            "INDEX_METHOD": "hnsw",
            "OLD_INDEX": old_index,
            "BGE_PIPELINE_HOME": str(home),
        } | dict(assignment.split("=", 1) for assignment in assignments)
        return _run([[sys.executable, "-m", "bge_pipeline", "migrate"]], settings, home)

    return Tool(f"ours, {also or f'OLD_INDEX={old_index}'}", run)


def nothing(seconds: float) -> Tool:
    """No migration at all: how much the application's own latency changes in that time."""

    def run(_dsn: str, _home: Path) -> str | None:
        time.sleep(seconds)
        return None

    return Tool("nothing", run)


def busy(seconds: float) -> Tool:
    """No migration, but a process that computes all the time: what any tool costs that keeps one core busy."""

    def run(_dsn: str, _home: Path) -> str | None:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
            time.sleep(seconds)
            process.kill()
        return None

    return Tool("a busy core", run)


def vecshift(command: Path) -> Tool:
    """The peer's `init`, `apply` and `cutover`, with its model that hashes words."""
    command = command.expanduser().absolute()
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def run(dsn: str, home: Path) -> str | None:
        job = str(home / "vecshift.yaml")
        start = ["init", "--table", "public.documents", "--model", "hash/384", "--force", "-o", job]
        steps = [start, ["apply", "-y", job], ["cutover", "-y", job]]
        return _run([[str(command), *step] for step in steps], {"VECSHIFT_DSN": dsn}, home)

    return Tool(version, run)


def _run(commands: Sequence[Sequence[str]], variables: dict[str, str], home: Path) -> str | None:
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root} | variables
    for command in commands:
        done = subprocess.run(
            command,
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
        if done.returncode:
            return f"{command[1:3]} exited with {done.returncode}: {(done.stdout + done.stderr)[-_SHOWN:]}"
    return None


class PhaseWatch:
    """Notes when the phases begin (seconds since the epoch), as the catalog shows them."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.marks: dict[str, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Look until the event is set."""
        connection = psycopg2.connect(self._dsn, application_name="phase watch")
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not stop.wait(_LOOK_SECONDS):
                cursor.execute(_PHASES)
                expanded, swapped, indexing = cursor.fetchone()
                for phase, has_begun in (("backfill", expanded), ("index", indexing), ("swap", swapped)):
                    if has_begun:
                        self.marks.setdefault(phase, time.time())
        connection.close()
