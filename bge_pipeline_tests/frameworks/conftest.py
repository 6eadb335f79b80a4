"""Fixtures for tables that frameworks made: a database without the demo's table, a command, the old and the new model."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from bge_pipeline.cli import app
from bge_pipeline.database.connection import Database
from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.frameworks.application import Application
from bge_pipeline_tests.support import administer

DOCUMENTS = 240
"""Enough for the quality gate to compare old and new neighbours."""

Command = Callable[..., Any]


@contextmanager
def fresh_database(server_url: URL) -> Iterator[str]:
    """URL of a database in which nothing is, dropped at the end."""
    name = f"bge_test_{uuid.uuid4().hex[:12]}"
    administer(server_url, f"CREATE DATABASE {name}")
    yield server_url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(server_url: URL) -> Iterator[str]:
    """URL of the application's database."""
    with fresh_database(server_url) as url:
        yield url


@pytest.fixture
def dagster_database_url(server_url: URL) -> Iterator[str]:
    """URL of a database for Dagster's records."""
    with fresh_database(server_url) as url:
        yield url


@pytest.fixture
def empty_database(empty_database_url: str) -> Iterator[Database]:
    """The same, opened."""
    with Database(empty_database_url) as database:
        yield database


@pytest.fixture
def start(empty_database_url: str, tmp_path: Path) -> Iterator[Callable[[str], Application]]:
    """Starts the application of that name."""
    python = os.environ.get("FRAMEWORKS_PYTHON")
    if not python:
        pytest.skip("make test-frameworks makes the frameworks' environment")
    started: list[Application] = []

    def begin(name: str) -> Application:
        started.append(Application(python, name, empty_database_url, tmp_path / f"{name}.log"))
        return started[-1]

    yield begin
    for application in started:
        application.close()


@pytest.fixture
def command(empty_database_url: str, run_folder: Path) -> Callable[[str], Command]:
    """Writes the settings of a page into `.env`; what it returns runs `bge-pipeline` there."""

    def with_settings(settings: str) -> Command:
        own = {
            "DATABASE_URL": empty_database_url,
            "EMBEDDING_MODEL": "bundled",
            "BGE_PIPELINE_HOME": run_folder / "home",
        }
        lines = [settings, *(f"{name}={value}" for name, value in own.items())]
        Path(".env").write_text("\n".join(lines) + "\n")

        def run(*arguments: str) -> Any:
            result = CliRunner().invoke(app, [*arguments, "--json"])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert result.exit_code == 0, result.output
            return json.loads(result.stdout)

        return run

    return with_settings


@pytest.fixture(scope="session")
def old_model() -> Encoder:
    """A model of 1536 dimensions."""
    return HashingEncoder(1536, name="old")


@pytest.fixture(scope="session")
def new_model(run_folder: Path) -> Iterator[Encoder]:
    """The real model that the command migrates to."""
    service = EmbeddingsService.from_settings(
        load_settings(embedding_model="bundled", bge_pipeline_home=run_folder / "home", _env_file=None)
    )
    yield service.encoder
    service.shutdown()


@pytest.fixture(scope="session")
def documents() -> dict[int, str]:
    """Passages of Python's documentation, by number."""
    return {number: segment.text for number, segment in enumerate(segments(DOCUMENTS), start=1)}
