"""No part of a password in a message, wherever in a URL it stands."""

from __future__ import annotations

import pytest

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.errors import ConfigurationError, DatabaseUnavailable
from bge_pipeline.postgres_url import has_password, parse_url, place, shown
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
        f"postgresql://me%3A{SECRET}@host/db",
        f"postgresql://me@host/db?port={SECRET}",
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


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "sslpassword",
        "oauth_client_secret",
        "scram_client_key",
        "PASSWORD",
        "passwort",
        "options",
        "unheard_of",
    ],
)
def test_secrets_among_the_parameters_are_hidden(name, tmp_path):
    url = f"postgresql://me:{SECRET}@/db?host={tmp_path}&{name}={SECRET}&sslmode=prefer"
    assert SECRET not in shown(parse_url(url))
    assert "***" in shown(parse_url(url))
    assert "sslmode=prefer" in shown(parse_url(url))
    with Database(url) as database:
        assert SECRET not in str(database)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me@host/db?dbname=db%20password%3D{SECRET}",
        f"postgresql://host/me:{SECRET}@db",
        f"postgresql://me@/db?host=me:{SECRET}@host",
        f"postgresql://me@host/db?password={SECRET}&password=other",
    ],
)
def test_secrets_where_none_belongs_are_hidden(url):
    assert SECRET not in shown(parse_url(url))
    assert "***" in shown(parse_url(url))
    assert SECRET not in place(parse_url(url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://me:{SECRET}@host:5433/db?sslmode=require", "host:5433/db"),
        ("postgresql://other@host/db", "host/db"),
        (f"postgresql://me:{SECRET}@/db?host=/run/a%20b&options=-csearch_path%3Dx", "/run/a b/db"),
        ("postgresql://me@/db?host=a&host=b&port=1,2", "a,b:1,2/db"),
        ("postgresql://me@[::1]:5433/db", "[::1]:5433/db"),
        ("postgresql://me@/", "me"),
    ],
)
def test_server_and_database_are_told_apart_in_short_whoever_logs_in(url, expected):
    assert place(parse_url(url)) == expected


def test_what_is_no_secret_is_shown():
    url = "postgresql://me@host:5432/my data?sslmode=verify-full&application_name=a&target_session_attrs=any"
    assert shown(parse_url(url)).endswith("my data?application_name=a&sslmode=verify-full&target_session_attrs=any")
    assert not has_password(parse_url(url))
    assert has_password(parse_url(f"{url}&options=-csearch_path=x"))


def test_a_parameter_that_the_driver_does_not_know_is_a_mistake_in_the_configuration(tmp_path):
    url = f"postgresql://me@/db?host={tmp_path}&PASSWORD={SECRET}"
    with (
        Database(url) as database,
        pytest.raises(ConfigurationError, match="PASSWORD") as refused,
        database.autocommit(),
    ):
        pass
    assert SECRET not in str(refused.value)


def test_a_server_that_is_not_there_is_named_without_any_of_them(tmp_path):
    url = f"postgresql://me:{SECRET}@/db?host={tmp_path}&sslpassword={SECRET}"
    with Database(url) as database, pytest.raises(DatabaseUnavailable) as refused, database.autocommit():
        pass
    assert SECRET not in str(refused.value)
