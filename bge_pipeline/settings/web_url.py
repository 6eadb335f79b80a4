"""URLs of web servers in the settings. None may hold a password: messages, the Dagster UI and reports show them."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from bge_pipeline.errors import ConfigurationError


def checked_url(variable: str, value: str, *, key: str | None = None) -> str:
    """The URL without a slash at its end. What was given in its place, a key perhaps, is not repeated.

    Args:
        variable: that holds it.
        key: the variable in which a key for that server belongs.

    Raises:
        ConfigurationError: it is no http or https URL, or has a user, a query or a fragment. An @ anywhere counts as a user's,
            since a password with a slash in it ends in what looks like a path.
    """
    try:
        url = urlsplit(value)
        is_of_the_web = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_of_the_web = False
    if not is_of_the_web:
        raise ConfigurationError(f"{variable}: expected an http or https URL")
    if "@" in value or url.query or url.fragment:
        raise ConfigurationError(
            f"{variable}: expected a base URL without a user, a query and a fragment"
            + (f"; a key belongs into {key}" if key is not None else "")
        )
    return value.rstrip("/")


def must_be_web_url(variable: str, *, key: str | None = None) -> Callable[[str | None], str | None]:
    """A validator of that variable: the URL as `checked_url` returns it, if it is set."""

    def validate(value: str | None) -> str | None:
        try:
            return checked_url(variable, value, key=key) if value is not None else None
        except ConfigurationError as error:
            raise ValueError(error.message.removeprefix(f"{variable}: ")) from None

    return validate
