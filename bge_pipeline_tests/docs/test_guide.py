"""The migration guide does what it says: every command, query and program in it is run."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.docs.guide import GUIDE, LANGUAGES, Scenario, read_blocks, read_scenarios
from bge_pipeline_tests.kinds import kinds
from bge_pipeline_tests.postgres_programs import programs_folder
from bge_pipeline_tests.roads import ROOT, environment

SCENARIOS = read_scenarios()
RUN = kinds(
    {scenario.name: scenario for scenario in SCENARIOS},
    "command",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project's folder as a clone has it: no `.env`, no data, no `.venv`."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for entry in [*ROOT.iterdir()]:
        if entry.name == ".env.example" or not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def dagster_database(settings: Settings) -> Iterator[str]:
    """URL of an empty database for Dagster's records."""
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    name = f"{url.database}_dagster"
    engine = create_engine(normalise_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield url.set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def run(settings: Settings, checkout: Path, tmp_path: Path, dagster_database: str) -> Callable[[Scenario], str]:
    """Runs a scenario as an operator would, in the clone, with the commands of this environment on the path."""
    run_sql = tmp_path / "run-sql"
    run_sql.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path(__file__).parent / 'run_sql.py'}'\n")
    run_sql.chmod(0o755)
    folders = [str(Path(sys.executable).parent), str(programs_folder()), os.environ["PATH"]]
    variables = environment(
        settings, PATH=os.pathsep.join(folders), RUN_SQL=str(run_sql), DAGSTER_DATABASE_URL=dagster_database
    )

    def run_scenario(scenario: Scenario) -> str:
        done = subprocess.run(
            ["bash", "-c", scenario.script()],
            env=variables,
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=290,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run_scenario


@pytest.mark.pgvector
@pytest.mark.slow
@pytest.mark.parametrize("scenario", RUN)
def test_the_guide_does_what_it_says(
    scenario: Scenario, run: Callable[[Scenario], str], checkout: Path, database: Database, migration: Migration
) -> None:
    with database.transaction() as connection:
        connection.execute(text("COMMENT ON COLUMN segments.embedding IS NULL"))  # a user's table has no note of ours

    run(scenario)

    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in checkout.glob(".env"))
    assert read_status(migration).phase == scenario.ends


def test_every_block_is_run_or_says_why_not() -> None:
    blocks = read_blocks()
    strangers = [f"{block.line}: {block.language!r}" for block in blocks if block.language not in LANGUAGES]
    homeless = [block.line for block in blocks if block.not_run is None and block.scenario is None]
    left_out = [f"{GUIDE.name}:{block.line}: {block.not_run}" for block in blocks if block.not_run]

    assert (strangers, homeless) == ([], [])
    assert all(scenario.ends for scenario in SCENARIOS)
    print("\nnot run:", *left_out, sep="\n  ")  # noqa: T201 - shown by `pytest -rP`
    assert len(left_out) == 8
