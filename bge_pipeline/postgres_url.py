"""PostgreSQL URLs: what may stand in one, and how one is shown without its secrets."""

from __future__ import annotations

import re

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bge_pipeline.errors import ConfigurationError

_HARMLESS_PARAMETERS = frozenset(
    "application_name channel_binding client_encoding connect_timeout dbname gssencmode host hostaddr keepalives "
    "keepalives_count keepalives_idle keepalives_interval krbsrvname load_balance_hosts port require_auth service sslcert "
    "sslkey sslmode sslnegotiation sslrootcert target_session_attrs tcp_user_timeout user".split()
)
"""Parameters of libpq that hold no secret. Others do, may (`options`), or are a secret's name misspelled."""
_HOLDS_MORE = re.compile("[@=]")
"""A second parameter in a value, or a user with a password where neither belongs."""
_PORTS = re.compile(r"[\d,]*")

_EXPECTED = "expected postgresql://user:password@host:5432/database"


def parse_url(url: str | URL) -> URL:
    """The parts of a URL; `postgres://` is taken for `postgresql://`.

    Raises:
        ConfigurationError: it is none, or one whose password would be taken for the host in part; no part is repeated.
    """
    if isinstance(url, URL):
        return url
    text = "postgresql:" + url.removeprefix("postgres:") if url.startswith("postgres:") else url
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(_EXPECTED) from None
    if parsed.get_backend_name() != "postgresql":
        raise ConfigurationError(f"{_EXPECTED}, got a URL for {parsed.get_backend_name()}")
    if parsed.username is not None and _has_at_sign(text.partition("://")[2].partition("@")[2]):
        raise ConfigurationError(f"{_EXPECTED}, with @ in a user name or password written as %40")
    if ":" in (parsed.username or ""):
        raise ConfigurationError(f"{_EXPECTED}, with the colon between user and password as it is, got it as %3A")
    if not all(_PORTS.fullmatch(port) for port in _values(parsed, "port")):
        raise ConfigurationError(f"{_EXPECTED}, got a port that is no number")
    return parsed


def shown(url: URL) -> str:
    """The URL as a message may show it: whatever may be a secret, by its place or its look, is masked."""
    hidden = {
        name: "***"
        for name in url.query
        if name not in _HARMLESS_PARAMETERS or any(map(_HOLDS_MORE.search, _values(url, name)))
    }
    if _HOLDS_MORE.search(url.database or ""):
        url = url.set(database="***")
    return url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def place(url: URL) -> str:
    """Server and database as the URL spells them, whoever logs in: `host:5432/database`; secrets are masked as in `shown`."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host or ",".join(_values(url, "host"))
    port = str(url.port or ",".join(_values(url, "port")))
    database = ",".join(_values(url, "dbname")) or url.database or url.username or ""
    host, database = ("***" if _HOLDS_MORE.search(part) else part for part in (host, database))
    return f"{host}{port and f':{port}'}/{database}" if host else database


def without_secrets(url: URL) -> URL:
    """The URL without its password and without every parameter that is not known to hold no secret."""
    others = [name for name in url.query if name not in _HARMLESS_PARAMETERS]
    return url._replace(password=None).difference_update_query(others)


def has_password(url: URL) -> bool:
    """Whether a secret stands in the URL, or what may be one."""
    return bool(url.password) or not _HARMLESS_PARAMETERS.issuperset(url.query)


def _values(url: URL, name: str) -> tuple[str, ...]:
    """Of a parameter, which may stand there several times."""
    found = url.query.get(name, ())
    return (found,) if isinstance(found, str) else found


def _has_at_sign(after_user: str) -> bool:
    """Whether there is one where host, port and database stand; a parameter's value may have one."""
    path, _, query = after_user.partition("?")
    return "@" in path or any("@" in parameter.partition("=")[0] for parameter in query.split("&"))
