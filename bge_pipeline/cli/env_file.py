"""Writing `.env`: readable by its owner alone, other lines left as they are, nothing replaced unasked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bge_pipeline.cli.consent import confirm
from bge_pipeline.cli.env_line import env_line
from bge_pipeline.errors import ConfigurationError

_ASSIGNED = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=", re.IGNORECASE)


def write_env(
    values: Mapping[str, str],
    path: Path = Path(".env"),
    *,
    without: Collection[str] = (),
    check: Callable[[Path], object] | None = None,
    yes: bool = False,
) -> None:
    """Set variables in the file, made with mode 0600 where it is not there; asks before lines of it are replaced or removed.

    Args:
        values: by variable.
        path: the file.
        without: variables whose lines are removed.
        check: is given a draft of the file before anybody is asked; what it raises prevents the writing.
        yes: ask nobody.

    Raises:
        ConfigurationError: a value cannot stand in such a file, or this user may not write it there.
        ConsentRequired: it would replace or remove lines, and there is nobody to ask.
        typer.Abort: the answer was no.
    """
    lines = {name: env_line(name, value) for name, value in values.items()}
    path = path.resolve()
    with _written_if_allowed(path):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
    # Not `splitlines`, which would break a value at rarer characters than line breaks.
    there = before.removesuffix("\n").split("\n") if before else []
    kept = [line for line in there if (name := _name(line)) not in lines and name not in without]
    content = "\n".join([*kept, *lines.values()]) + "\n"
    if check is not None:
        with _draft(content, path) as draft:
            check(draft)
    replaced = [name for line in there if (name := _name(line)) in lines and line.strip() != lines[name]]
    removed = [name for line in there if (name := _name(line)) in without]
    changed = {"replaced": replaced, "removed": removed}
    told = [f"{', '.join(dict.fromkeys(names))}, which would be {how}" for how, names in changed.items() if names]
    if told:
        confirm(f"{path.name} is there and sets {', and '.join(told)}.", yes=yes)
    with _draft(content, path) as draft, _written_if_allowed(path):
        draft.replace(path)


@contextmanager
def _draft(content: str, path: Path) -> Iterator[Path]:
    """The file that may take the place of `path`: whole, never readable by others, gone at the end."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        with _written_if_allowed(path):
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
        yield draft
    finally:
        with _written_if_allowed(path):
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
