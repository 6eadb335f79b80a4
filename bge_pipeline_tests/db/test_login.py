"""A server that lets nobody in, told from one that cannot be reached. The server is one of a few lines where it must refuse."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database
from bge_pipeline.errors import DatabaseUnavailable, LoginRefused
from bge_pipeline.phases.row_writing import is_transient

_REFUSED = [
    ("28P01", 'password authentication failed for user "me"'),
    ("28000", 'no pg_hba.conf entry for host "10.0.0.1", user "me", database "db", no encryption'),
    ("28000", 'pg_hba.conf rejects connection for host "10.0.0.1", user "me", database "db", no encryption'),
    ("28000", 'role "me" is not permitted to log in'),
    ("42501", 'permission denied for database "db"'),
]
_MAY_PASS = [
    ("57P03", "the database system is starting up"),
    ("53300", "sorry, too many clients already"),
    ("57P01", "terminating connection due to administrator command"),
]


@contextmanager
def server_that_says(sqlstate: str, message: str) -> Iterator[str]:
    """URL of a server that answers each attempt to connect with this error, as PostgreSQL sends it."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode()

    def answer() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(1_024)
                client.sendall(b"E" + (4 + len(fields)).to_bytes(4, "big") + fields)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        yield f"postgresql://me:hunter2@127.0.0.1:{listener.getsockname()[1]}/db?sslmode=disable&gssencmode=disable"
        listener.shutdown(socket.SHUT_RDWR)


def refusal_of(url: str | URL) -> DatabaseUnavailable:
    with Database(url) as database, pytest.raises(DatabaseUnavailable) as refused:
        database.require_answer()
    return refused.value


@pytest.mark.parametrize(("sqlstate", "message"), _REFUSED)
def test_a_refused_login_says_so_and_is_no_reason_to_try_again(sqlstate: str, message: str):
    with server_that_says(sqlstate, message) as url:
        error = refusal_of(url)

    assert isinstance(error, LoginRefused)
    assert message in str(error)
    assert "hunter2" not in str(error)
    assert "DATABASE_URL" in str(error.next_step)
    assert not is_transient(error)


@pytest.mark.parametrize(("sqlstate", "message"), _MAY_PASS)
def test_a_server_that_is_busy_or_starting_is_tried_again(sqlstate: str, message: str):
    with server_that_says(sqlstate, message) as url:
        error = refusal_of(url)

    assert not isinstance(error, LoginRefused)
    assert is_transient(error)


@pytest.mark.pgvector
@pytest.mark.parametrize("part", ["username", "database"])
def test_a_real_server_refuses_a_user_and_a_database_that_it_does_not_have(server_url: URL, part: str):
    error = refusal_of(server_url.set(**{part: "nobody_knows_it"}))

    assert isinstance(error, LoginRefused)
