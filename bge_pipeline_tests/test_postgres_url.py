"""No part of a password in a message, wherever in a URL it stands."""

from __future__ import annotations

import pytest

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.errors import ConfigurationError, DatabaseUnavailable
from bge_pipeline.postgres_url import SECRET_PARAMETERS, parse_url, shown
from bge_pipeline.settings import load_settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:begin@{SECRET}@host/db",
        f"postgresql://me:begin@{SECRET}@host:5432/db",
        f"postgresql://me:be@gin:{SECRET}@host/db",
        f"postgresql://me:begin@x/{SECRET}@host/db",
        f"postgresql://me:begin@x?{SECRET}@host/db",
        f"postgresql://me:begin@{SECRET}#@host/db?sslmode=require",
        f"postgresql://me@{SECRET}@host/db",
        f"postgres://me:begin@{SECRET}@host/db",
        f"postgresql://me:{SECRET}@host:port/db",
        f"me:{SECRET}@host/db",
    ],
)
def test_a_url_whose_password_would_be_read_as_something_else_is_refused_unseen(url, monkeypatch):
    for attempt in (normalise_url, Database):
        with pytest.raises(ConfigurationError, match="expected postgresql://") as refused:
            attempt(url)
        assert SECRET not in str(refused.value)
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ConfigurationError, match="DATABASE_URL: expected postgresql://") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_what_is_to_be_written_instead_is_said():
    with pytest.raises(ConfigurationError, match="@ in a user name or password written as %40"):
        parse_url(f"postgresql://me:begin@{SECRET}@host/db")


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://me:a%40b@host/db", "a@b"),
        ("postgresql://me:a/b?c#d:e@host/db", "a/b?c#d:e"),
        ("postgresql://me@host/db?password=a@b", "a@b"),
        ("postgresql:///db?user=me@example.org&password=a@b", "a@b"),
        ("postgresql://me:secret@[::1]:5432/db", "secret"),
        ("postgresql://host/db", None),
    ],
)
def test_other_urls_are_taken(url, password):
    assert normalise_url(url).password == password


@pytest.mark.parametrize("name", SECRET_PARAMETERS)
def test_secrets_among_the_parameters_are_hidden(name, tmp_path):
    url = f"postgresql://me:{SECRET}@/db?host={tmp_path}&{name}={SECRET}&sslmode=prefer"
    assert SECRET not in shown(parse_url(url))
    assert "***" in shown(parse_url(url))
    assert "sslmode=prefer" in shown(parse_url(url))
    with Database(url) as database:
        assert SECRET not in str(database)


def test_a_server_that_is_not_there_is_named_without_any_of_them(tmp_path):
    url = f"postgresql://me:{SECRET}@/db?host={tmp_path}&sslpassword={SECRET}"
    with Database(url) as database, pytest.raises(DatabaseUnavailable) as refused, database.autocommit():
        pass
    assert SECRET not in str(refused.value)
