"""`--env-file`: one of several tables by command, named before or behind it, and in every command that is advised."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bge_pipeline.cli import app, invocation
from bge_pipeline.database.connection import Database
from bge_pipeline.errors import BgePipelineError, ConfigurationError
from bge_pipeline.settings import Settings, load_settings, settings_of_file
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector


@pytest.fixture
def papers(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a table `papers`; environment and `.env` name another, and the database of both."""
    assert settings.database_url is not None
    execute(database, "CREATE TABLE papers (id bigint PRIMARY KEY, abstract text, embedding vector(1536))")
    execute(database, "INSERT INTO papers SELECT id, text, embedding FROM segments LIMIT 30")
    Path(".env").write_text("TARGET_TEXT_COLUMN=text\nEMBEDDING_MODEL=hashing\n")
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BGE_PIPELINE_HOME", str(settings.bge_pipeline_home))
    monkeypatch.setenv("TARGET_TABLE", "segments")
    file = Path("papers.env")
    file.write_text("TARGET_TABLE=papers\nTARGET_TEXT_COLUMN=abstract\n")
    return file


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def test_the_file_wins_over_the_environment_which_wins_over_the_other_file(papers: Path):
    for arguments in (("--env-file", str(papers), "status"), ("status", f"--env-file={papers}")):
        status = json.loads(run(*arguments, "--json").stdout)
        assert (status["table"], status["rows"]) == ('"public"."papers"', 30)
    assert json.loads(run("status", "--json").stdout)["table"] == '"public"."segments"'


def test_a_setting_of_the_command_line_wins_over_the_file(papers: Path):
    status = json.loads(run("--env-file", str(papers), "--set", "TARGET_TABLE=segments", "--set",
                            "TARGET_TEXT_COLUMN=text", "status", "--json").stdout)  # fmt: skip
    assert status["rows"] == 300


def test_advice_reaches_the_same_table(
    papers: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["bge-pipeline", "--env-file", str(papers), "retire", "--yes"])
    with pytest.raises(SystemExit):
        invocation.main()
    assert "Next: bge-pipeline --env-file papers.env migrate" in capsys.readouterr().err
    assert "bge-pipeline --env-file papers.env migrate" in run("--env-file", str(papers), "plan").stdout


def test_a_file_that_is_not_there_is_named_unless_the_command_makes_it(papers: Path):
    with pytest.raises(ConfigurationError, match=r"notes\.env cannot be read: No such file"):
        run("--env-file", "notes.env", "status")

    run("--env-file", "notes.env", "init", "--table", "papers", "--text-column", "abstract", "--model", "hashing",
        "--dimensions", "384", "--yes")  # fmt: skip

    assert stat.S_IMODE(Path("notes.env").stat().st_mode) == 0o600
    assert settings_of_file(Path("notes.env"))["target_table"] == "papers"
    assert Path(".env").read_text() == "TARGET_TEXT_COLUMN=text\nEMBEDDING_MODEL=hashing\n"


def test_what_is_misspelled_in_the_file_is_noted(papers: Path, capsys: pytest.CaptureFixture[str]):
    papers.write_text(papers.read_text() + "EMBEDING_MODEL=x\n")
    assert "papers.env: EMBEDING_MODEL is no setting" in run("--env-file", str(papers), "status").stderr


def test_two_tables_at_once_are_refused(papers: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BgePipelineError, match="--demo and --env-file name two tables"):
        run("--demo", "--env-file", str(papers), "status")
    monkeypatch.setenv("BGE_PIPELINE_TABLES", str(papers))
    with pytest.raises(ConfigurationError, match="whose tables this command serves"):
        run("--env-file", str(papers), "dev")


def test_old_spellings_and_empty_values_count_in_a_file_as_elsewhere(papers: Path):
    papers.write_text("EMBEDDINGS_DIM=256\nTARGET_TABLE=\nUNKNOWN=1\n")
    assert settings_of_file(papers) == {"embedding_dimensions": "256"}
    assert load_settings(**settings_of_file(papers)).embedding_dimensions == 256
