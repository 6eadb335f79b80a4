"""The Pythons that the suite is run with, each in an environment beside the one of `make`."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bge_pipeline_tests.roads import ROOT

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
VARIABLE = "PYTHONS"
"""Interpreters by their paths, with spaces between; without it those on the path, `python3.10` and so on."""
FOLDER = Path(sys.prefix) / "pythons"


def interpreters() -> Iterator[Path]:
    """Those that there are; on the path can be one that pyenv would start if it were chosen, which is none.

    Raises:
        FileNotFoundError: one that was named cannot be started.
    """
    named = os.environ.get(VARIABLE)
    for name in named.split() if named else [f"python{version}" for version in VERSIONS]:
        found = shutil.which(name)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            yield Path(found)
        elif named:
            raise FileNotFoundError(f"{VARIABLE} names {name}, which is no Python that can be started")


def version_of(python: Path) -> str:
    """Such as 3.12.1."""
    ask = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()


def environment_of(python: Path, version: str) -> Path:
    """The interpreter of an environment with this project and what its tests use; this one's where it is of that version."""
    if version == platform.python_version():
        return Path(sys.executable)
    folder = FOLDER / version
    inside, installed = folder / "bin" / "python", folder / "installed"
    if not installed.exists() or installed.read_text() != _wanted():
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [inside, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        extras = f"{ROOT}[embedded,openvino,dev]"
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", "--editable", extras], check=True)
        installed.write_text(_wanted())
    return inside


def _wanted() -> str:
    """What the environment is made of, so that it is made again when that changes."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
