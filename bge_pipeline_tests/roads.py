"""What the tests of the three roads share: environment for a subprocess, Alembic's configuration, a table's fingerprint."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic.config import Config
from sqlalchemy import make_url, text

from bge_pipeline.database.connection import Database
from bge_pipeline.settings import Settings
from bge_pipeline_tests.postgres_programs import programs_folder

ROOT = Path(__file__).parent.parent

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, col_description(a.attrelid, a.attnum)
FROM pg_attribute a WHERE a.attrelid = 'segments'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1
"""
_INDEXES = (
    "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index WHERE indrelid = 'segments'::regclass ORDER BY 1"
)
_TRIGGERS = """
SELECT pg_get_triggerdef(t.oid), pg_get_functiondef(t.tgfoid) FROM pg_trigger t
WHERE tgrelid = 'segments'::regclass AND NOT tgisinternal ORDER BY 1
"""
_VECTORS = "SELECT id, embedding::text FROM segments ORDER BY id"


def environment(settings: Settings, **overrides: str) -> dict[str, str]:
    """The environment in which a subprocess sees the same settings."""
    assert settings.database_url is not None
    own = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "BGE_PIPELINE_HOME": str(settings.bge_pipeline_home),
        "EMBEDDING_MODEL": settings.embedding_model,
        "TARGET_TABLE": settings.target_table,
    }
    return {name: value for name, value in os.environ.items() if name.upper() not in own} | own | overrides


def alembic_config() -> Config:
    """Alembic's configuration as `alembic` reads it in the project's folder, without its logging."""
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.set_main_option("prepend_sys_path", str(ROOT))
    return config


def schema(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """Everything about the target table that a migration may change, but its rows."""
    with database.autocommit() as connection:
        return {
            name: [tuple(row) for row in connection.execute(text(query))]
            for name, query in {"columns": _COLUMNS, "indexes": _INDEXES, "triggers": _TRIGGERS}.items()
        }


def vectors(database: Database) -> dict[int, str]:
    """The vectors that search reads, by id."""
    with database.autocommit() as connection:
        return {row.id: row.embedding for row in connection.execute(text(_VECTORS))}


@contextmanager
def typed(answer: str | None) -> Iterator[int]:
    """What to give a process as its input: a terminal at which the answer is typed; of None cron's empty input."""
    if answer is None:
        yield subprocess.DEVNULL
        return
    terminal, end = pty.openpty()
    try:
        os.write(terminal, f"{answer}\n".encode())
        yield end
    finally:
        os.close(terminal)
        os.close(end)


def run_command(
    settings: Settings, cwd: Path, *arguments: str, answer: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`bge-pipeline` as a process of its own; `answer` is typed at a terminal, None is cron's empty input."""
    with typed(answer) as stdin:
        return subprocess.run(
            [sys.executable, "-m", "bge_pipeline", *arguments],
            env=environment(settings, **variables),
            cwd=cwd,
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


def run_psql(script: str, database_url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script in psql, the one on the path or the one beside the server, with psql's variables set."""
    found = shutil.which("psql") or programs_folder() / "psql"
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    assigned = [f"--set={name}={value}" for name, value in (variables | {"ON_ERROR_STOP": "1"}).items()]
    return subprocess.run(
        [found, "--no-psqlrc", "--quiet", *assigned, url],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def starting_commands(settings: Settings, cwd: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `bge-pipeline` in batches of ten rows and without the gate; whatever is left of it ends with the block."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bge_pipeline", *arguments],
            env=environment(settings, **{"QUALITY_GATE": "off", "BACKFILL_BATCH_ROWS": "10"} | variables),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
