"""What the documents say about settings and commands is what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest
from typer.main import get_command

from bge_pipeline.cli import app
from bge_pipeline.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])
README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_explained_in_the_example(name: str) -> None:
    assert re.search(rf"^(# )?{name.upper()}=", EXAMPLE, re.MULTILINE)


def test_every_variable_of_the_example_is_a_setting() -> None:
    names = set(re.findall(r"^(?:# )?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert names <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_the_example_shows_the_default(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSION_PRIORITY")
    shown = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE)).get(name.upper(), "")
    if shown and name not in ("enable_reranker",):  # the block with the reranker shows what turns it on
        assert getattr(load_settings(**{name: shown}), name) == getattr(load_settings(), name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_names_exists(document: Path) -> None:
    command = get_command(app)
    # Options of the command itself, too: those of completion, say.
    known = {*command.commands, *(name for option in command.params for name in option.opts)}
    named = set(re.findall(r"bge-pipeline ((?:--env-file [^ ]+ |-[^ ]+ )*)([a-z-]+)", document.read_text()))
    assert {command for _, command in named} <= known


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_files_that_hold_passwords_stay_out_of_git_and_the_example_does_not(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    private = [".env", ".env.papers", "papers.env", "tables/notes.env"]
    command = ["git", "check-ignore", *private, ".env.example"]
    ignored = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ignored.stdout.split() == private


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_badges_say_what_the_package_declares() -> None:
    declared = metadata("bge-pipeline")
    badges = re.findall(r"^!\[([^\]]+)\]\(https://img.shields.io/badge/([^)]+)-\w+\)$", README, re.MULTILINE)
    assert [text for text, _ in badges] == [
        "Python 3.10 to 3.13",
        "PostgreSQL 15 to 18",
        "pgvector 0.5 to 0.8",
        "License: Apache 2.0",
    ]
    for text, picture in badges:
        assert picture.replace("_", " ").replace("-", " ").lower() == text.replace(":", "").lower()
    versions = [line.rpartition(" ")[2] for line in declared.get_all("Classifier", []) if ":: 3." in line]
    assert f"Python {versions[0]} to {versions[-1]}" == badges[0][0]
    assert declared["License-Expression"] == "Apache-2.0"
    assert "PostgreSQL 15 to 18 with pgvector 0.5 to 0.8" in README.split("## Configuration")[1]


def test_every_command_is_in_the_readme_or_the_guide() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    assert [name for name in get_command(app).commands if f"bge-pipeline {name}" not in text] == []
