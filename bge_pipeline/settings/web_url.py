"""URLs of web servers in the settings. None may hold a password: messages, the Dagster UI and reports show them."""

from __future__ import annotations

from urllib.parse import urlsplit

from bge_pipeline.errors import ConfigurationError


def checked_url(variable: str, value: str, *, key: str | None = None) -> str:
    """The URL without a slash at its end. What was given in its place, a key perhaps, is not repeated.

    Args:
        variable: that holds it.
        key: the variable in which a key for that server belongs.

    Raises:
        ConfigurationError: it is no http or https URL, or has a user, a query or a fragment.
    """
    try:
        url = urlsplit(value)
        is_of_the_web = url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        is_of_the_web = False
    if not is_of_the_web:
        raise ConfigurationError(f"{variable}: expected an http or https URL")
    if url.username or url.password or url.query or url.fragment:
        raise ConfigurationError(
            f"{variable}: expected a base URL without a user, a query and a fragment",
            next_step=f"a key belongs into {key}" if key is not None else None,
        )
    return value.rstrip("/")
