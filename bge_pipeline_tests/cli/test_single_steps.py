"""The phases as commands of their own, the quarantine as a tool, and options that stand where people put them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline_tests.cli.test_commands import Run, run  # noqa: F401 - a fixture
from bge_pipeline_tests.support import execute, pending_ids, put_in_quarantine


@pytest.mark.pgvector
@pytest.mark.thorough
def test_expand_backfill_and_swap_are_what_migrate_does(run: Run, database: Database) -> None:  # noqa: F811
    too_early = run("backfill")
    assert (too_early.returncode, "bge-pipeline migrate" in too_early.stderr) == (3, True)

    dry = run("migrate", "--dry-run", "--json")
    assert json.loads(dry.stdout)["pending"] == 300
    assert json.loads(run("status", "--json").stdout)["phase"] == "legacy", "nothing was done"

    assert json.loads(run("expand", "--json").stdout)["added"]
    assert json.loads(run("backfill", "--until", "100", "--json").stdout)["rows"] == 100
    refused = run("swap")
    assert (refused.returncode, "rows of" in refused.stderr) == (3, True)
    assert json.loads(run("backfill", "--json").stdout)["rows"] == 200
    assert pending_ids(database) == []
    assert json.loads(run("swap", "--json").stdout)["exchanged"]
    assert json.loads(run("status", "--json").stdout)["phase"] == "swapped"


@pytest.mark.pgvector
@pytest.mark.thorough
def test_quarantine_is_listed_let_go_and_tried_again(run: Run, database: Database) -> None:  # noqa: F811
    assert json.loads(run("quarantine", "list", "--json").stdout)["rows"] == 0
    assert run("expand").returncode == 0
    put_in_quarantine(database, 3, 4, 5)
    found = json.loads(run("quarantine", "list", "--json", "-n", "2").stdout)
    assert (found["rows"], len(found["latest"]), sum(found["reasons"].values())) == (3, 2, 3)

    asked = run("quarantine", "drop", "3")
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    assert json.loads(run("quarantine", "drop", "3", "--yes", "--json").stdout) == {"released": 1, "left": 2}

    retried = json.loads(run("quarantine", "retry", "4", "--json").stdout)
    assert (retried["released"], retried["left"]) == (1, 1)
    assert execute(database, "SELECT embedding_384 IS NOT NULL FROM segments WHERE id = 4") == [(True,)]
    assert "bge-pipeline quarantine retry" in run("quarantine", "list").stdout


@pytest.mark.pgvector
def test_every_reason_of_the_quarantine_is_listed(run: Run, database: Database) -> None:  # noqa: F811
    assert run("expand").returncode == 0
    put_in_quarantine(database, 3, 4)
    execute(database, "UPDATE segments_embedding_quarantine SET error = 'reason ' || row_id")
    listed = run("quarantine", "list").stdout
    assert ("1: reason 3" in listed, "1: reason 4" in listed) == (True, True)


@pytest.mark.pgvector
def test_a_search_by_words_loads_no_model(run: Run) -> None:  # noqa: F811
    found = run("search", "list", "--mode", "lexical", "--json", EMBEDDING_MODEL="nobody/has-this")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"]


@pytest.mark.pgvector
def test_a_page_that_cannot_be_written_is_said_before_anything_is_measured(run: Run) -> None:  # noqa: F811
    for arguments in (["doctor", "--html", "/proc/nothing/page.html"], ["benchmark", "--output", "/proc/nothing"]):
        refused = run(*arguments)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr
        assert "expected a folder that can be written to" in " ".join(refused.stderr.split())


@pytest.mark.pgvector
def test_set_may_stand_behind_the_command_and_a_near_name_is_told(run: Run) -> None:  # noqa: F811
    assert run("status", "--json", "--set", "LOCK_TIMEOUT_MS=77").returncode == 0
    wrong = run("status", "--set=LOCK_TIMEOUT=77")
    assert (wrong.returncode, "did you mean LOCK_TIMEOUT_MS?" in wrong.stderr) == (2, True)


def test_the_version_is_printed(run: Run) -> None:  # noqa: F811
    assert run("--version").stdout.startswith("bge-pipeline ")


@pytest.mark.pgvector
def test_status_has_the_next_step_for_programs(run: Run) -> None:  # noqa: F811
    assert json.loads(run("status", "--json").stdout)["next_step"] == "bge-pipeline plan, then bge-pipeline migrate"


@pytest.mark.pgvector
@pytest.mark.thorough
def test_explain_is_for_people_and_the_servers_plan_is_asked_for(run: Run) -> None:  # noqa: F811
    assert run("migrate", QUALITY_GATE="off").returncode == 0

    for_people = run("search", "open a file", "--mode", "hybrid", "--explain").stdout
    with_plan = run("search", "--explain=sql", "open a file").stdout

    assert "no. 1 by meaning (distance" in for_people
    assert "by words (BM25" in for_people
    assert "hybrid search" in for_people
    assert "cost=" not in for_people
    assert "no. 1 by meaning (distance" in with_plan
    assert "cost=" in with_plan
    assert "by meaning" not in run("search", "open a file").stdout
    assert run("search", "open a file", "--explain=xml").returncode == 2


@pytest.mark.parametrize(
    ("typed", "meant"), [(("statsu",), "'status'"), (("status", "--jsn"), "'--json'")], ids=["command", "option"]
)
def test_what_is_nearly_a_command_or_an_option_is_suggested_once(
    run: Run,  # noqa: F811
    typed: tuple[str, ...],
    meant: str,
) -> None:
    refused = run(*typed)
    said = " ".join(refused.stderr.split())
    assert refused.returncode == 2
    assert said.count("Did you mean") == 1
    assert f"Did you mean {meant}?" in said


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("bge-pipeline roll", "rollback"),
        ("bge-pipeline --set OLD_IN", "OLD_INDEX="),
        ("bge-pipeline plan --js", "--json"),
    ],
)
def test_the_shell_completes_commands_options_and_settings(typed: str, offered: str) -> None:
    command = Path(sys.executable).parent / "bge-pipeline"
    if not command.exists():
        pytest.skip("needs the installed command: pip install -e .")
    completion = {"_BGE_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [command], env=os.environ | completion, capture_output=True, text=True, timeout=60, check=False
    )
    assert offered in done.stdout.split(), done.stderr
