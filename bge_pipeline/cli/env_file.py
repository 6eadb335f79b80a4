"""Writing `.env`: readable by its owner alone, other lines left as they are, nothing replaced unasked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bge_pipeline.cli.consent import confirm
from bge_pipeline.cli.env_line import env_line
from bge_pipeline.errors import ConfigurationError

_ASSIGNED = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=", re.IGNORECASE)


def write_env(values: Mapping[str, str], path: Path = Path(".env"), *, yes: bool = False) -> None:
    """Set variables in the file, made with mode 0600 where it is not there; asks before lines of it are replaced.

    Raises:
        ConfigurationError: a value cannot stand in such a file, or this user may not write it there.
        ConsentRequired: it would replace lines, and there is nobody to ask.
        typer.Abort: the answer was no.
    """
    lines = {name: env_line(name, value) for name, value in values.items()}
    path = path.resolve()
    with _written_if_allowed(path):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
    # Not `splitlines`, which would break a value at rarer characters than line breaks.
    there = before.removesuffix("\n").split("\n") if before else []
    replaced = [line for line in there if (name := _name(line)) in lines and line.strip() != lines[name]]
    if replaced:
        names = ", ".join(dict.fromkeys(_name(line) for line in replaced))
        confirm(f"{path.name} is there and sets {names}, which would be replaced.", yes=yes)
    kept = [line for line in there if _name(line) not in lines]
    with _written_if_allowed(path):
        _write("\n".join([*kept, *lines.values()]) + "\n", path)


def _write(content: str, path: Path) -> None:
    """Whole or not at all, and never readable by others in between."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _written_if_allowed(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror or error}",
            state="nothing was written",
            next_step="the same command in a folder that this user may write to, or with --env-file and a file in one",
        ) from error


def _name(line: str) -> str:
    found = _ASSIGNED.match(line)
    return found[1].upper() if found else ""
