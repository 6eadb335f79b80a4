"""Connections: every spelling of a URL, no time limits of the role, vectors in any schema, no password in a message."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.errors import DatabaseUnavailable, MissingPrivilege
from bge_pipeline_tests.support import application, execute, scalar


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_every_spelling_of_a_url_reaches_psycopg2(scheme):
    url = normalise_url(f"{scheme}://me:secret@host:5433/db?sslmode=require")
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == ("me", "secret", "host", 5433, "db")
    assert url.query == {"sslmode": "require"}


def test_a_server_that_is_not_there_is_reported_without_the_password(tmp_path):
    with (
        Database(f"postgresql://me:hunter2@/db?host={tmp_path}") as database,
        pytest.raises(DatabaseUnavailable) as refused,
        database.autocommit(),
    ):
        pass
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in str(database)
    assert "me:***@" in str(refused.value)
    assert refused.value.next_step


@pytest.mark.pgvector
class TestOnAServer:
    def test_a_transaction_is_committed_at_the_end_and_rolled_back_on_an_error(self, database):
        execute(database, "CREATE TABLE t (n int)")
        with database.transaction() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        with pytest.raises(DBAPIError), database.transaction() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (2), (1 / 0)")
        assert scalar(database, "SELECT array_agg(n) FROM t") == [1]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    def test_a_forked_child_has_a_connection_of_its_own(self, database_url):
        script = """
import os, sys
from sqlalchemy import text
from bge_pipeline.database.connection import Database
database = Database(sys.argv[1])
def backend():
    with database.autocommit() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
parents = backend()
child = os.fork()
if child == 0:
    os._exit(0 if backend() != parents else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert backend() == parents
raise SystemExit(code)
"""
        assert subprocess.run([sys.executable, "-c", script, database_url], check=False).returncode == 0

    def test_vectors_are_found_in_a_schema_that_is_not_on_the_path(self, database, database_url):
        execute(database, "CREATE SCHEMA extensions")
        execute(database, "ALTER EXTENSION vector SET SCHEMA extensions")
        with Database(database_url) as fresh:
            assert scalar(fresh, "SELECT '[1,2]'::vector <-> '[1,2]'") == 0

    def test_a_role_s_time_limits_do_not_end_long_statements(self, database, database_url):
        name = database.url.database
        execute(database, f"ALTER DATABASE {name} SET statement_timeout = '50ms'")
        execute(database, f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '50ms'")
        with application(database) as connection, pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT pg_sleep(1)")
        with Database(database_url) as fresh, fresh.transaction() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(0.1)")

    def test_a_connection_that_the_server_ended_is_an_unavailable_database(self, database):
        with pytest.raises(DatabaseUnavailable) as refused, database.autocommit() as connection:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        assert "terminat" in refused.value.message
        assert scalar(database, "SELECT 1") == 1

    def test_a_connection_that_the_server_ends_after_its_last_statement_is_no_failure(self, database):
        with database.autocommit() as first_use:
            first_use.exec_driver_sql("SELECT 1")
        with database.autocommit() as second_use:
            pid = second_use.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            execute(database, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        assert scalar(database, "SELECT 1") == 1

    def test_a_refused_statement_is_a_missing_privilege(self, database):
        with (
            pytest.raises(MissingPrivilege, match="permission denied") as refused,
            database.transaction() as connection,
        ):
            connection.exec_driver_sql("SET LOCAL ROLE pg_monitor; SELECT * FROM segments")
        assert "plan" in refused.value.next_step


def test_a_password_among_the_url_parameters_is_hidden_too():
    url = normalise_url("postgresql://user@host/database?password=hunter2&sslmode=require")
    assert url.password == "hunter2"
    assert "hunter2" not in url.render_as_string(hide_password=True)
    assert url.query == {"sslmode": "require"}


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("postgresql:///app", True),
        ("postgresql://localhost:6543/app", True),
        ("postgresql://[::1]/app", True),
        ("postgresql:///app?host=/run/postgresql", True),
        ("postgresql://db.example.org/app", False),
        ("postgresql:///app?host=db.example.org", False),
        ("postgresql:///app?host=one.example.org&host=two.example.org", False),
    ],
)
def test_a_server_on_this_machine_is_known_by_its_url(url, here):
    assert Database(url).is_on_this_machine is here
