"""Secrets wherever one may be configured: a server that lets nobody in without a password and logs every statement, an endpoint
that is asked with a key, and folders that are searched afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.endpoint_server import EndpointServer, serving
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.security.canaries import (
    API_KEY,
    DAGSTER_PASSWORD,
    EXPANSION_KEY,
    OPTION,
    PASSWORD,
    SSL_PASSWORD,
    Sightings,
)
from bge_pipeline_tests.support import administer

ROWS = 100


@pytest.fixture(scope="module")
def guarded() -> Iterator[OwnServer]:
    """The server; `postgres` alone may log in without a password."""
    server = OwnServer.temporary()
    (server.folder / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    server.set(log_statement="all", log_connections="on", fsync="off")
    administer(server.url, f"CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    administer(server.url, f"CREATE ROLE bookkeeper SUPERUSER LOGIN PASSWORD '{DAGSTER_PASSWORD}'")
    (server.folder / "log").write_text("")  # what was said of passwords so far is the test's own
    yield server
    server.remove()


@pytest.fixture
def guarded_url(guarded: OwnServer) -> Iterator[URL]:
    """URL of a database with the demo table, with a secret wherever one may stand."""
    administer(guarded.url, "CREATE DATABASE app")
    with Database(guarded.url.set(database="app")) as database:
        create_demo_table(database, load_settings(_env_file=None), ROWS)
    yield guarded.url.set(
        drivername="postgresql", username="keeper", password=PASSWORD, database="app"
    ).update_query_dict({"sslpassword": SSL_PASSWORD, "options": f"-c my.token={OPTION}"})
    administer(guarded.url, "DROP DATABASE app WITH (FORCE)")


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    """An endpoint, which a test may make repeat its key."""
    with serving() as served:
        yield served


@pytest.fixture
def sightings() -> Sightings:
    """The search of a test."""
    return Sightings()


@pytest.fixture
def surroundings(guarded_url: URL, server: EndpointServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a command, all of whose folders are below `tmp_path`; it is to begin in `work`."""
    for folder in ("work", "home", "user", "tmp"):
        (tmp_path / folder).mkdir()
    return {
        "DATABASE_URL": guarded_url.render_as_string(hide_password=False),
        "BGE_PIPELINE_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path / "user"),
        "TMPDIR": str(tmp_path / "tmp"),
        "EMBEDDING_PROVIDER": "openai",
        "EMBEDDING_MODEL": "some-model",
        "EMBEDDING_API_URL": server.url,
        "EMBEDDING_API_KEY": API_KEY,
        "EMBEDDING_MAX_ATTEMPTS": "1",
        "QUERY_EXPANSION": "chat",
        "QUERY_EXPANSION_URL": server.url,
        "QUERY_EXPANSION_KEY": EXPANSION_KEY,
    }
