"""A server that lets nobody in without a password, and writes every statement into its log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.security.canaries import DAGSTER_PASSWORD, OPTION, PASSWORD, SSL_PASSWORD
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
