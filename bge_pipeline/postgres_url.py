"""PostgreSQL URLs: what may stand in one, and how one is shown without its secrets."""

from __future__ import annotations

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bge_pipeline.errors import ConfigurationError

SECRET_PARAMETERS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""Parameters of libpq that hold a secret."""

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
    return parsed


def shown(url: URL) -> str:
    """The URL as a message may show it."""
    hidden = {name: "***" for name in SECRET_PARAMETERS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def _has_at_sign(after_user: str) -> bool:
    """Whether there is one where host, port and database stand; a parameter's value may have one."""
    path, _, query = after_user.partition("?")
    return "@" in path or any("@" in parameter.partition("=")[0] for parameter in query.split("&"))
