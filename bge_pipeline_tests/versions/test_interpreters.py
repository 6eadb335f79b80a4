"""Which Pythons the suite is run with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_pipeline_tests.versions.interpreters import VARIABLE, interpreters


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two on the path, of which one is only a name: as pyenv leaves it where another version is chosen."""
    for version, exit_code in (("3.10", 127), ("3.12", 0)):
        program = tmp_path / f"python{version}"
        program.write_text(f"#!/bin/sh\nexit {exit_code}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_one_that_does_not_start_is_none(pythons: Path) -> None:
    assert list(interpreters()) == [pythons / "python3.12"]


def test_one_that_was_named_and_does_not_start_is_an_error(pythons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{pythons / 'python3.12'} {pythons / 'python3.10'}")
    with pytest.raises(FileNotFoundError, match=r"PYTHONS names .*python3\.10"):
        list(interpreters())
