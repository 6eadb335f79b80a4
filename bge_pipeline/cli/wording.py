"""How commands are named to the user: with `--demo` where the demo's table is meant, or they would reach another table."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMAND = re.compile(r"\bbge-pipeline (?!demo\b)(?=[a-z])")


@dataclass
class _Meant:
    options: str = ""


_meant = _Meant()


def mean_the_demo(demo: bool, *, elsewhere: bool = False) -> None:
    """Note whether this process was told to work on the demo's table, and whether on one in another database."""
    _meant.options = ("--demo --set DATABASE_URL=... " if elsewhere else "--demo ") if demo else ""


def demo_is_meant() -> bool:
    """What `mean_the_demo` was told last."""
    return bool(_meant.options)


def worded(text: str) -> str:
    """The text with its commands as they reach the table that this process works on."""
    return _COMMAND.sub(f"bge-pipeline {_meant.options}", text)
