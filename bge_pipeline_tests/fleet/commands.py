"""The commands that deploy/ gives its containers, made to run here: on free ports, by the interpreter of the tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
_COMPOSE = [DEPLOY / "docker/docker-compose.yaml", DEPLOY / "celery/docker-compose.yaml"]
_CALL = "import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"


def services() -> dict[str, dict[str, Any]]:
    """The services of the compose files, with what the file for Celery adds."""
    found: dict[str, dict[str, Any]] = {}
    for path in _COMPOSE:
        for name, service in yaml.safe_load(path.read_text())["services"].items():
            found[name] = found.get(name, {}) | service
    return found


def command_of(service: str, replaced: Mapping[str, str]) -> list[str]:
    """What a service's container runs, as a list for `subprocess`; words of it may be replaced, such as a port."""
    return runnable(services()[service]["command"], replaced)


def healthcheck_of(service: str, replaced: Mapping[str, str]) -> list[str]:
    """What asks the container whether it is well; a line for the shell is split into words."""
    kind, *words = services()[service]["healthcheck"]["test"]
    if kind == "CMD-SHELL":
        words = words[0].split()
    return runnable(words, replaced)


def runnable(command: list[str], replaced: Mapping[str, str]) -> list[str]:
    """The command with `replaced` in its words; a console script of Python is called in this interpreter."""
    name, *rest = command
    arguments = [_replace(word, replaced) for word in rest]
    if name == "python":
        return [sys.executable, *arguments]
    if script := next(iter(entry_points(group="console_scripts", name=name)), None):
        call = _CALL.format(module=script.module, function=script.attr, name=name)
        return [sys.executable, "-c", call, *arguments]
    program = shutil.which(name)
    assert program is not None, f"{name} is not installed"
    return [program, *arguments]


def _replace(word: str, replaced: Mapping[str, str]) -> str:
    for old, new in replaced.items():
        word = word.replace(old, new)
    return word
