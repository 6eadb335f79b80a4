"""Fixtures that every room shares: a real PostgreSQL, one fresh database per test cloned from a template."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.database.embedded import start_embedded_postgres
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.old_spellings import OLD_NAMES
from bge_pipeline.settings import Settings, load_settings

SEGMENTS = 300
"""Rows of the demo table in the template: enough for every behaviour, embedded in a blink."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env of the machine reaches a test."""
    for name in (*Settings.model_fields, *OLD_NAMES):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> URL:
    """The server that TEST_DATABASE_URL names, or an embedded one that the workers of this run share."""
    configured = os.environ.get("TEST_DATABASE_URL")
    if configured:
        return normalise_url(configured)
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    return normalise_url(start_embedded_postgres(shared / "postgres"))


@pytest.fixture(scope="session")
def template(server_url: URL, worker_id: str) -> Iterator[str]:
    """A database with pgvector and the demo table in phase legacy."""
    name = f"bge_template_{worker_id}_{uuid.uuid4().hex[:8]}"
    _administer(server_url, f"CREATE DATABASE {name}")
    with Database(server_url.set(database=name)) as database:
        create_demo_table(database, load_settings(_env_file=None), SEGMENTS)
    yield name
    _administer(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def database_url(server_url: URL, template: str) -> Iterator[str]:
    """URL of a fresh database with the demo table, password included."""
    name = f"bge_test_{uuid.uuid4().hex[:12]}"
    _administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server_url.set(database=name).set(drivername="postgresql").render_as_string(hide_password=False)
    _administer(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


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


def _administer(server_url: URL, statement: str) -> None:
    engine = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
