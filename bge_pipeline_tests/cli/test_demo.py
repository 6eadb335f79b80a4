"""`bge-pipeline demo` beside a user's own tables, and the commands that reach its table afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bge_pipeline.cli.demo import question_to_user
from bge_pipeline.database.connection import Database
from bge_pipeline.database.local_server import start_embedded_postgres
from bge_pipeline.demo.home import SCHEMA, demo_settings
from bge_pipeline.demo.mark import claim_schema
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline_tests.endpoint_server import EndpointServer, error, serving
from bge_pipeline_tests.support import columns_of, contents_of, execute, make_users_tables

pytestmark = pytest.mark.pgvector

SMALL = ("--rows", "150")
FAST = {"EMBEDDING_MODEL": "hashing", "QUALITY_GATE": "off", "BENCHMARK_TEXTS": "20", "LOCK_TIMEOUT_MS": "5000"}
Run = Callable[..., "subprocess.CompletedProcess[str]"]
SETTINGS_OF_THE_DATABASE = """
SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = current_database()
"""


@pytest.fixture
def home(run_folder: Path) -> Path:
    """The user's data folder, outside pytest's own, whose rights a second run would take away from the server."""
    return run_folder / uuid.uuid4().hex[:8]


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Run:
    """Runs the command where nothing but a data folder and a fast model is set."""

    def run_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bge_pipeline", *arguments],
            env=os.environ | FAST | {"BGE_PIPELINE_HOME": str(home)} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run_command


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with serving() as served:
        yield served


@pytest.fixture
def users_database(database: Database) -> Database:
    """The database that the user's DATABASE_URL names, with tables under the demo's names."""
    make_users_tables(database)
    make_users_tables(database, "app")
    return database


@pytest.fixture
def embedded(home: Path) -> Iterator[list[Database]]:
    """The user's embedded server and the demo's own, both with tables of the user's."""
    databases = [Database(start_embedded_postgres(home / folder)) for folder in ("postgres", "demo/postgres")]
    for database in databases:
        make_users_tables(database)
    yield databases
    for database in databases:
        database.close()


@pytest.fixture
def demo(home: Path) -> Iterator[Database]:
    """The demo's own embedded server with its table, not migrated yet."""
    settings = demo_settings({"bge_pipeline_home": home})
    with Database.from_settings(settings) as database:
        with database.transaction() as connection:
            claim_schema(connection, SCHEMA)
        create_demo_table(database, settings, 40)
        yield database


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.thorough
def test_a_reset_demo_leaves_everything_of_the_users_as_it_was(
    run: Run,
    users_database: Database,
    embedded: list[Database],
    demo: Database,
    database_url: str,
    tmp_path: Path,
) -> None:
    users = [users_database, *embedded]
    before = [(contents_of(database), contents_of(database, "app")) for database in users]
    (tmp_path / ".env").write_text(
        f"DATABASE_URL={database_url}\nTARGET_SCHEMA=app\nTARGET_TABLE=segments\nTARGET_TEXT_COLUMN=body\n"
        f"DAGSTER_DATABASE_URL={database_url}\n"
    )

    others = {"EVAL_QUERIES": "/nowhere.jsonl", "TARGET_TEXT": "title || body", "TARGET_WHERE": "tenant_id = 7"}
    made = run("demo", "--reset", *SMALL, DATABASE_URL=database_url, **others)

    assert made.returncode == 0, made.stderr
    assert [(contents_of(database), contents_of(database, "app")) for database in users] == before
    assert contents_of(users_database, SCHEMA) == contents_of(embedded[0], SCHEMA) == {}
    assert len(contents_of(demo, SCHEMA)["segments"]) == 150
    said = " ".join(made.stderr.split())
    assert (
        "DAGSTER_DATABASE_URL, DATABASE_URL, EVAL_QUERIES, TARGET_SCHEMA, TARGET_TABLE, TARGET_TEXT, TARGET_TEXT_COLUMN"
        in said
    )
    assert "bge-pipeline --demo status" in made.stdout
    status = json.loads(run("--demo", "status", "--json").stdout)
    assert (status["table"], status["phase"], status["rows"]) == ('"bge_pipeline_demo"."segments"', "swapped", 150)


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.thorough
def test_a_database_that_is_named_is_worked_in_only_when_the_user_agrees_and_only_in_the_demos_schema(
    run: Run, users_database: Database, home: Path, database_url: str
) -> None:
    before = contents_of(users_database), contents_of(users_database, "app")

    refused = run("demo", "--reset", "--database-url", database_url, *SMALL)
    assert refused.returncode == 2
    assert f"makes the schema {SCHEMA}" in " ".join(refused.stderr.split())
    assert "--yes" in refused.stderr
    assert contents_of(users_database, SCHEMA) == {}
    assert not home.exists()

    theirs = {"SERVER_SEARCH_EFFORT": "set", "LEGACY_DIMENSIONS": "3072", "INDEX_LISTS": "30"}
    made = run("demo", "--reset", "--yes", "--database-url", database_url, *SMALL, **theirs)
    assert made.returncode == 0, made.stderr
    assert execute(users_database, SETTINGS_OF_THE_DATABASE) == []
    assert (contents_of(users_database), contents_of(users_database, "app")) == before
    assert len(contents_of(users_database, SCHEMA)["segments"]) == 150
    assert "bge-pipeline --demo --set DATABASE_URL=... status" in made.stdout
    reached = run("--demo", "--set", f"DATABASE_URL={database_url}", "status", "--json")
    assert json.loads(reached.stdout)["phase"] == "swapped"


def test_an_endpoint_is_sent_nothing_before_the_user_agrees(run: Run, home: Path, server: EndpointServer) -> None:
    refused = run("demo", *SMALL, EMBEDDING_PRICE_PER_MILLION="100", **server.environment())

    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    host = server.url.split("/")[2]
    assert re.search(rf"This sends 150 texts of Python's documentation, about \d\S+ tokens .* to {host}: about", said)
    assert "--yes" in said
    assert server.requests == []
    assert not home.exists()


def test_what_else_is_asked_of_a_person_is_asked_with_it(server: EndpointServer) -> None:
    endpoint = {name.lower(): value for name, value in server.environment().items()}
    elsewhere = {"database_url": "postgresql://me:hunter2@host/app"}
    asked = question_to_user(demo_settings(endpoint, **elsewhere), rows=20, reset=True)
    assert asked is not None
    assert "postgresql://me:***@host/app" in asked
    assert "Nothing else there is changed. This sends 20 texts" in asked
    asked = question_to_user(demo_settings({"server_search_effort": "set"}, **elsewhere), rows=20, reset=False)
    assert asked is not None
    assert "but the search effort of new sessions, by SERVER_SEARCH_EFFORT=set" in asked
    assert question_to_user(demo_settings({}), rows=20, reset=True) is None


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_demo_that_failed_goes_on_by_the_command_that_it_names(run: Run, server: EndpointServer) -> None:
    server.rule = lambda _: (401, {}, error("no such key"))
    failed = run("demo", "--yes", *SMALL, **server.environment())
    assert failed.returncode == 1, failed.stderr
    said = " ".join(failed.stderr.split())
    assert f"some-model of {server.url.split('/')[2]}, which is sent the demo's texts" in said
    assert f"backfill_job failed: {server.url}: EMBEDDING_API_KEY is missing or not accepted" in said
    assert said.endswith("Next: bge-pipeline --demo migrate resumes")

    server.rule = lambda _: None
    resumed = run("--demo", "migrate", **server.environment())
    assert resumed.returncode == 0, resumed.stderr
    status = json.loads(run("--demo", "status", "--json", **server.environment()).stdout)
    assert (status["phase"], status["rows"], status["pending"]) == ("swapped", 150, 0)


@pytest.mark.slow
@pytest.mark.thorough
def test_an_interrupt_while_the_table_is_loaded_names_no_migration_that_resumes(home: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bge_pipeline", "demo", "--rows", "100000"],
        env=os.environ | FAST | {"BGE_PIPELINE_HOME": str(home)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stderr is not None
        assert any("rows loaded" in line for line in demo.stderr)
        demo.send_signal(signal.SIGINT)
        said = " ".join(demo.communicate(timeout=60)[1].split())
    assert demo.returncode == 130, said
    assert "interrupted before the demo's table was there Next: the same command with --reset begins again" in said
    assert "migrate" not in said
    assert "Traceback" not in said


def test_another_database_is_named_by_the_demos_own_option_alone(run: Run, database_url: str) -> None:
    refused = run("--set", f"DATABASE_URL={database_url}", "demo")
    assert refused.returncode == 2
    assert "--database-url" in refused.stderr


@pytest.mark.usefixtures("demo")
def test_after_a_demo_commands_reach_its_table_where_nothing_else_is_named(run: Run, tmp_path: Path) -> None:
    status = run("status", "--json")
    assert json.loads(status.stdout)["table"] == '"bge_pipeline_demo"."segments"'
    assert "working on the demo's table" in status.stderr

    named = run("status", TARGET_TABLE="documents")
    assert (named.returncode, "there is no embedded PostgreSQL" in " ".join(named.stderr.split())) == (2, True)


@pytest.mark.usefixtures("demo")
def test_beside_a_table_of_the_users_the_demos_is_reached_by_name(
    run: Run, users_database: Database, database_url: str
) -> None:
    assert json.loads(run("status", "--json", DATABASE_URL=database_url).stdout)["rows"] == 50
    assert json.loads(run("--demo", "status", "--json", DATABASE_URL=database_url).stdout)["rows"] == 40


@pytest.mark.usefixtures("demo")
def test_alembic_works_on_no_demo_and_never_on_the_users_table_in_its_place(
    run: Run, users_database: Database, database_url: str
) -> None:
    refused = run("--demo", "alembic", "upgrade", "005", DATABASE_URL=database_url)
    assert (refused.returncode, "got the demo's" in refused.stderr) == (2, True)
    assert "embedding_384" not in columns_of(users_database)
    assert run("alembic", "upgrade", "005").returncode == 2
    assert run("alembic", "history").returncode == 0


@pytest.mark.usefixtures("demo")
def test_with_the_demo_by_name_the_next_commands_are_named_so_that_they_reach_it_too(run: Run) -> None:
    shown = " ".join(run("--demo", "status").stdout.split())
    assert "bge-pipeline --demo plan, then bge-pipeline --demo migrate" in shown


def test_a_demo_that_is_not_there_is_not_made_by_asking_for_it(run: Run, home: Path) -> None:
    asked = run("--demo", "status")
    assert asked.returncode == 2
    assert "bge-pipeline demo makes it" in asked.stderr
    assert not home.exists()
