"""One line of `.env`: a variable and its value, in quotes where it needs them."""

from __future__ import annotations

import re

from bge_pipeline.errors import ConfigurationError

_PLAIN = re.compile(r"[\w./:@%?&=+,-]*")


def env_line(name: str, value: str) -> str:
    """The line that sets the variable, for the file as for a shell.

    Raises:
        ConfigurationError: the value cannot stand in such a file.
    """
    if "${" in value or {"\n", "\r"} & set(value):
        raise ConfigurationError(
            f"{name}: a value with ${{ or a line break cannot stand in .env",
            state="nothing was written",
            next_step=f"set {name} in the environment",
        )
    if _PLAIN.fullmatch(value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{escaped}'"
