"""How commands are named to the user: with the options by which they reach the table that this process works on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from bge_pipeline.console import commands_with


@dataclass
class _Meant:
    options: str = ""
    demo: bool = False


_meant = _Meant()


def mean_table(*, demo: bool = False, elsewhere: bool = False, env_file: Path | None = None) -> None:
    """Note which table this process was told to work on.

    Args:
        demo: the demo's.
        elsewhere: the demo's in another database.
        env_file: the one that this file names.
    """
    options = "--demo --set DATABASE_URL=..." if elsewhere else "--demo"
    named = f"--env-file {shlex.quote(str(env_file))}" if env_file is not None else ""
    _meant.demo, _meant.options = demo, options if demo else named


def demo_is_meant() -> bool:
    """What `mean_table` was told last."""
    return _meant.demo


def worded(text: str) -> str:
    """The text with its commands as they reach the table that this process works on."""
    return commands_with(_meant.options, text)
