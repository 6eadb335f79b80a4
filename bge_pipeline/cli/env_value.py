"""A value as a line of an env file has it."""

from __future__ import annotations

import re

from bge_pipeline.errors import ConfigurationError

_PLAIN = re.compile(r"[\w./:@%?&=+,-]*")


def quoted(name: str, value: str) -> str:
    """The value as the file has it.

    Raises:
        ConfigurationError: it cannot stand in such a file.
    """
    if "${" in value or {"\n", "\r"} & set(value):
        raise ConfigurationError(
            f"{name}: a value with ${{ or a line break cannot stand in .env",
            state="nothing was written",
            next_step=f"set {name} in the environment",
        )
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
