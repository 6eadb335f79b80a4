"""Fixtures that every room shares: a real PostgreSQL, one fresh database per test cloned from a template."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psutil import virtual_memory
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from bge_pipeline.database.catalog import version_numbers
from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.old_spellings import OLD_NAMES
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline_tests.postgres_programs import named_programs, start_server
from bge_pipeline_tests.run_folders import make_run_folder, remove_left_folders
from bge_pipeline_tests.support import administer, copy_database

_IN_MEMORY = Path("/dev/shm")
_ROOM = 4 * 2**30
"""Bytes; a run takes not quite half of it."""
_LONGEST = ("ui/", "orchestration/test_processes.py")
SEGMENTS = 300
"""Rows of the demo table in the template: enough for every behaviour, embedded in a blink."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env of the machine reaches a test."""
    for name in (*Settings.model_fields, *OLD_NAMES):
        monkeypatch.delenv(name.upper(), raising=False)
    # The workers of a run want every processor, and what gives way to them would come to no end.
    monkeypatch.setenv("SESSION_PRIORITY", "normal")
    monkeypatch.chdir(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A folder for what this run's servers and tests write, outside pytest's own, whose rights a second run would take away.

    Thousands of databases are made and dropped there, so that it lies in memory where that is large enough and neither
    TMPDIR nor --basetemp names another place. Folders of runs that were killed go first.
    """
    if hasattr(config, "workerinput"):
        return
    elsewhere = Path(tempfile.gettempdir())
    for parent in (_IN_MEMORY, elsewhere):
        remove_left_folders(parent)
    in_memory = not os.environ.get("TMPDIR") and _has_room(_IN_MEMORY)
    folder, lock = make_run_folder(_IN_MEMORY if in_memory else elsewhere)
    atexit.register(lock.close)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["BGE_PIPELINE_TESTS_FOLDER"] = str(folder)
    if in_memory and not config.option.basetemp:
        config.option.basetemp = f"{folder}/t"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, which mostly wait for other processes: at the end one worker would be left alone with them."""
    items.sort(key=lambda item: not item.nodeid.removeprefix("bge_pipeline_tests/").startswith(_LONGEST))


def _has_room(folder: Path) -> bool:
    return folder.is_dir() and shutil.disk_usage(folder).free > _ROOM and virtual_memory().available > 2 * _ROOM


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """What the workers of this run share."""
    return Path(os.environ["BGE_PIPELINE_TESTS_FOLDER"])


@pytest.fixture(scope="session")
def server_url(run_folder: Path) -> URL:
    """The server that TEST_DATABASE_URL names, or one of this run that its workers share."""
    configured = os.environ.get("TEST_DATABASE_URL")
    if configured:
        return normalise_url(configured)
    url = normalise_url(start_server(run_folder / "postgres", named_programs()).get_uri())
    administer(url, "ALTER SYSTEM SET fsync = off")  # its databases live for one test
    administer(url, "SELECT pg_reload_conf()")
    return url


@pytest.fixture(scope="session")
def pgvector(server_url: URL) -> str:
    """The version of pgvector that this server gives a new database."""
    engine = create_engine(server_url, poolclass=NullPool)
    with engine.connect() as connection:
        query = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
        return str(connection.execute(text(query)).scalar_one())


@pytest.fixture(autouse=True)
def _has_what_the_test_needs(request: pytest.FixtureRequest) -> None:
    """`pytest.mark.pgvector("0.7")` leaves a test out where pgvector is older."""
    for since in [marker.args[0] for marker in request.node.iter_markers("pgvector") if marker.args]:
        found = request.getfixturevalue("pgvector")
        if version_numbers(found) < version_numbers(since):
            pytest.skip(f"came with pgvector {since}")


@pytest.fixture(scope="session")
def template(server_url: URL, run_folder: Path) -> Iterator[str]:
    """A database with pgvector and the demo table in phase legacy; the first worker makes it, the last drops it."""
    name = "bge_template_" + hashlib.sha256(str(run_folder).encode()).hexdigest()[:8]
    users = run_folder / "template-users"
    with _locked(users) as count:
        if count == 0:
            administer(server_url, f"CREATE DATABASE {name}")
            with Database(server_url.set(database=name)) as database:
                create_demo_table(database, load_settings(_env_file=None), SEGMENTS)
        users.write_text(str(count + 1))
    yield name
    with _locked(users) as count:
        if count == 1:
            administer(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        users.write_text(str(count - 1))


@pytest.fixture
def new_database_url(server_url: URL, template: str) -> Iterator[Callable[[], str]]:
    """Makes fresh databases with the demo table; returns a URL, password included."""
    names: list[str] = []

    def make() -> str:
        names.append(f"bge_test_{uuid.uuid4().hex[:12]}")
        copy_database(server_url, template, names[-1])
        return server_url.set(database=names[-1], drivername="postgresql").render_as_string(hide_password=False)

    yield make
    for name in names:
        administer(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """URL of a fresh database with the demo table."""
    return new_database_url()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database with the demo table in phase legacy."""
    with Database(database_url) as database:
        yield database


@pytest.fixture
def make_settings(database_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings for the fresh database and the deterministic encoder; keywords override."""

    def make(**overrides: object) -> Settings:
        values: dict[str, object] = {
            "database_url": database_url,
            "bge_pipeline_home": tmp_path / "home",
            "embedding_model": "hashing",
            "lock_timeout_ms": 200,
            "lock_max_attempts": 3,
        }
        return load_settings(**(values | overrides))

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """The settings of most tests."""
    return make_settings()


@pytest.fixture
def migration(database: Database, settings: Settings) -> Migration:
    """The migration of the fresh database's table."""
    return Migration(database, settings)


@contextmanager
def _locked(counter: Path) -> Iterator[int]:
    """The number in a file, while no other worker can read it."""
    with counter.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield int(counter.read_text()) if counter.exists() else 0
