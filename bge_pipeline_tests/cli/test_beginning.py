"""`discover` and `init`: from a database to `.env` and a plan, with somebody to ask and without."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bge_pipeline.cli import app
from bge_pipeline.cli.env_file import write_env
from bge_pipeline.database.connection import Database
from bge_pipeline.errors import ConfigurationError, ConsentRequired
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import execute, schema_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def url(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    assert settings.database_url is not None
    monkeypatch.setenv("BGE_PIPELINE_HOME", str(settings.bge_pipeline_home))
    return settings.database_url.get_secret_value()


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


@pytest.mark.pgvector("0.7")
def test_discover_lists_every_column_and_writes_the_lines_of_one(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    execute(database, 'CREATE TABLE "Order Notes" ("Nr" uuid PRIMARY KEY, body text, v halfvec(1024))')
    listed = json.loads(run("discover", "--json").stdout)["columns"]
    assert [one["name"] for one in listed] == ["public.Order Notes.v", "public.segments.embedding"]
    assert "public.segments.embedding" in run("discover").stdout

    run("discover", "--table", "Order Notes", "--write")

    found = load_settings()
    assert (found.target_table, found.target_id_column, found.target_text_column, found.target_embedding_column) == (
        "Order Notes",
        "Nr",
        "body",
        "v",
    )
    with pytest.raises(ConfigurationError, match=r"there are public\.Order Notes\.v, public\.segments\.embedding"):
        run("discover", "--table", "orders", "--write")
    with pytest.raises(ConsentRequired, match=r"\.env is there and sets TARGET_TABLE"):
        run("discover", "--table", "segments", "--write")
    assert load_settings().target_table == "Order Notes"


@pytest.fixture
def memories(database: Database, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of mem0, whose text is an expression, and one whose key and text nobody can tell."""
    monkeypatch.setenv("DATABASE_URL", url)
    execute(database, "CREATE TABLE memories (id uuid PRIMARY KEY, vector vector(3), payload jsonb)")
    execute(database, "CREATE TABLE bare (key int, v vector(3), segment_text text, title text)")


def lines_of(path: str = ".env") -> set[str]:
    return set(Path(path).read_text().splitlines())


@pytest.mark.usefixtures("memories")
@pytest.mark.parametrize("command", [("discover", "--write"), ("init", "--model", "hashing", "--dimensions", "384")])
@pytest.mark.parametrize("file", [(), ("--env-file", ".env"), ("--env-file", "other.env")])
def test_the_text_of_one_table_takes_the_place_of_anothers(command: tuple[str, ...], file: tuple[str, ...]) -> None:
    written = file[-1] if file else ".env"
    of_file = file if written != ".env" else ()
    Path(written).write_text("TARGET_TEXT_COLUMN=text\nTARGET_WHERE='id > 1'\nPARTITION_ROWS=7\n")
    with pytest.raises(ConsentRequired, match="TARGET_TEXT_COLUMN, TARGET_WHERE, which would be removed"):
        run(*file, *command, "--table", "memories")
    assert "TARGET_TEXT_COLUMN=text" in lines_of(written), "nobody has said yes"

    run(*file, *command, "--table", "memories", "--yes")
    run(*of_file, "status", "--json")
    assert {"PARTITION_ROWS=7", "TARGET_TABLE=memories"} < lines_of(written)
    assert not any(line.startswith(("TARGET_TEXT_COLUMN", "TARGET_WHERE")) for line in lines_of(written))

    run(*file, *command, "--table", "segments", "--yes")
    assert json.loads(run(*of_file, "status", "--json").stdout)["rows"] == 300
    assert "TARGET_TEXT_COLUMN=text" in lines_of(written)
    assert not any(line.startswith("TARGET_TEXT=") for line in lines_of(written))


@pytest.mark.usefixtures("memories")
def test_what_cannot_be_told_of_a_table_is_not_what_was_said_of_another() -> None:
    Path(".env").write_text("TARGET_ID_COLUMN=key\nTARGET_TEXT_COLUMN=title\n")
    run("discover", "--table", "bare", "--write", "--yes")
    assert lines_of() == {"TARGET_SCHEMA=public", "TARGET_TABLE=bare", "TARGET_EMBEDDING_COLUMN=v"}

    Path(".env").write_text(
        "TARGET_TABLE=bare\nTARGET_ID_COLUMN=key\nTARGET_TEXT_COLUMN=title\nTARGET_WHERE='key > 1'\n"
    )
    run("discover", "--table", "bare", "--write", "--yes")
    assert {"TARGET_ID_COLUMN=key", "TARGET_TEXT_COLUMN=title", "TARGET_WHERE='key > 1'"} < lines_of(), (
        "it was of this one"
    )


@pytest.mark.usefixtures("memories")
@pytest.mark.parametrize("command", [("discover", "--write"), ("init", "--model", "hashing", "--dimensions", "384")])
def test_nothing_is_written_with_which_no_command_would_run(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_TEXT_COLUMN", "text")
    Path(".env").write_text("TARGET_TABLE=segments\n")
    with pytest.raises(ConfigurationError, match="expected one of TARGET_TEXT_COLUMN") as refused:
        run(*command, "--table", "memories", "--yes")
    assert refused.value.state == "nothing was written"
    assert Path(".env").read_text() == "TARGET_TABLE=segments\n"
    assert list(Path().glob("*.draft")) == []


def test_init_without_a_terminal_takes_options_and_ends_with_a_plan(database: Database, url: str) -> None:
    before = schema_of(database)
    plan = json.loads(
        run("init", "--database-url", url, "--model", "hashing", "--dimensions", "384", "--json", "--yes").stdout
    )

    assert (plan["phase"], plan["new_dimensions"], plan["obstacles"]) == ("legacy", 384, [])
    assert schema_of(database) == before
    assert oct(Path(".env").stat().st_mode & 0o777) == "0o600"
    found = load_settings()
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == url
    assert (found.target_table, found.embedding_model) == ("segments", "hashing")


HASHING = ("--model", "hashing", "--dimensions", "384", "--yes")


def test_init_names_what_the_next_command_would_read_from_the_environment_instead(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@production/app")
    monkeypatch.setenv("EMBEDDING_MODEL", "BAAI/bge-base-en-v1.5")
    monkeypatch.setenv("TARGET_TABLE", "segments")

    done = run("init", "--database-url", url, *HASHING)

    assert "DATABASE_URL of the environment wins over .env: unset it" in done.stderr
    assert "EMBEDDING_MODEL of the environment wins over .env: unset it" in done.stderr
    assert "TARGET_TABLE of" not in done.stderr, "it says the same"
    assert "Next: unset DATABASE_URL EMBEDDING_MODEL, then bge-pipeline migrate" in done.stderr
    assert "Next: bge-pipeline migrate" not in done.stderr
    assert "hunter2" not in done.output
    named = run("--env-file", "other.env", "init", "--database-url", url, *HASHING)
    assert "wins over" not in named.stderr, "such a file wins itself"
    assert "Next: bge-pipeline --env-file other.env migrate" in named.stderr
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.delenv("EMBEDDING_MODEL")
    agreeing = run("init", *HASHING)
    assert "wins over" not in agreeing.stderr
    assert "Next: bge-pipeline migrate" in agreeing.stderr


def test_discover_names_them_too(database: Database, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("TARGET_TABLE", "another")
    assert "TARGET_TABLE of the environment wins over .env" in run("discover", "--write").stderr


def test_where_no_file_can_be_written_it_is_one_error(database: Database, url: str) -> None:
    Path(".env").mkdir()
    with pytest.raises(ConfigurationError, match=r"\.env cannot be written: Is a directory"):
        run("init", "--database-url", url, *HASHING)
    Path("file").touch()
    with pytest.raises(ConfigurationError, match=r"file/papers\.env cannot be written: Not a directory") as refused:
        run("--env-file", "file/papers.env", "init", "--database-url", url, *HASHING)
    assert refused.value.state == "nothing was written"
    assert list(Path(".env").iterdir()) == []


def test_init_without_a_terminal_says_which_option_is_missing(database: Database, url: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL cannot be told") as refused:
        run("init")
    assert refused.value.next_step == "the same command with --database-url"
    execute(database, "CREATE TABLE notes (id int PRIMARY KEY, title text, summary text, embedding vector(3))")
    with pytest.raises(ConfigurationError, match="--table: several columns can be meant"):
        run("init", "--database-url", url)
    with pytest.raises(ConfigurationError, match="TARGET_TEXT_COLUMN cannot be told") as refused:
        run("init", "--database-url", url, "--table", "notes")
    assert refused.value.next_step == "the same command with --text-column"
    assert not Path(".env").exists()


def test_init_asks_at_a_terminal(database: Database, settings: Settings, tmp_path: Path) -> None:
    execute(database, "CREATE TABLE notes (id int PRIMARY KEY, title text, summary text, embedding vector(3))")
    terminal, end = pty.openpty()
    os.write(terminal, b"1\nsummary\nhashing\n384\n")
    variables = environment(settings)
    for name in ("EMBEDDING_MODEL", "TARGET_TABLE"):
        del variables[name]
    done = subprocess.run(
        [sys.executable, "-m", "bge_pipeline", "init", "--json"],
        env=variables, cwd=tmp_path, stdin=end, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(terminal)
    os.close(end)
    assert done.returncode == 0, done.stderr
    assert "Which one (1 to 2)" in done.stderr
    assert "2  public.segments.embedding" in done.stderr
    assert json.loads(done.stdout), "what a program reads is JSON alone"
    lines = (tmp_path / ".env").read_text().splitlines()
    assert lines[1:] == [
        "TARGET_SCHEMA=public",
        "TARGET_TABLE=notes",
        "TARGET_ID_COLUMN=id",
        "TARGET_EMBEDDING_COLUMN=embedding",
        "TARGET_TEXT_COLUMN=summary",
        "EMBEDDING_MODEL=hashing",
        "EMBEDDING_DIMENSIONS=384",
    ]


def test_other_lines_of_the_file_stay_and_odd_values_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "kept" / ".env"
    file.parent.mkdir()
    file.write_text("# mine\nOTHER=1\nexport TARGET_TABLE=old\n")
    (tmp_path / ".env").symlink_to(file)

    write_env({"TARGET_TABLE": 'it\'s # \\ "odd" $x', "TARGET_SCHEMA": "The Shop"}, tmp_path / ".env", yes=True)

    assert (tmp_path / ".env").is_symlink()
    assert file.read_text().startswith("# mine\nOTHER=1\nTARGET_TABLE=")
    found = load_settings()
    assert (found.target_table, found.target_schema) == ('it\'s # \\ "odd" $x', "The Shop")
    with pytest.raises(ConfigurationError, match=r"TARGET_TABLE: a value with \$\{"):
        write_env({"TARGET_TABLE": "${HOME}"}, tmp_path / ".env", yes=True)
