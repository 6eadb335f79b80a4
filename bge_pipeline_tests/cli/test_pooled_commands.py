"""Every command through a PgBouncer: none leaves anything of ours on the connections that the application is given next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.cli.test_commands import Run, run  # noqa: F401 - a fixture
from bge_pipeline_tests.pooler import behind, pgbouncer
from bge_pipeline_tests.roads import alembic_config, environment
from bge_pipeline_tests.support import fill, fill_and_swap, schema_of

pytestmark = pytest.mark.pgvector

Pooled = Callable[..., str]


@pytest.fixture
def pooled(server_url: URL, database: Database) -> Iterator[Pooled]:
    """Starts a pooler of that mode; returns the URL of the test's database behind it."""
    with ExitStack() as opened:

        def start(mode: str, **options: str) -> str:
            url = opened.enter_context(pgbouncer(server_url, mode, **options)).set(database=database.url.database)
            return url.render_as_string(hide_password=False)

        yield start


def find_behind(url: str) -> list[tuple[object, ...]]:
    with Database(url) as through:
        return behind(through.url, through.url.database)


@pytest.mark.parametrize("arguments", [["status"], ["plan"], ["search", "how are generators closed"]], ids=str)
@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.thorough
def test_commands_that_change_nothing_go_on(run: Run, pooled: Pooled, mode: str, arguments: list[str]) -> None:  # noqa: F811
    url = pooled(mode, server_reset_query="")
    if arguments[0] == "search":
        arguments = [*arguments, "--explain"]
        assert run("migrate").returncode == 0
    result = run(*arguments, DATABASE_URL=url)
    if (mode, arguments[0]) == ("transaction", "plan"):
        assert result.returncode == 3
        assert "pool_mode = session" in " ".join(result.stdout.split())
    else:
        assert result.returncode == 0, result.stderr
    assert find_behind(url) == []


def test_a_pooler_that_allows_no_transactions_still_serves_reading(run: Run, pooled: Pooled) -> None:  # noqa: F811
    assert run("migrate").returncode == 0
    url = pooled("statement")
    assert json.loads(run("status", "--json", DATABASE_URL=url).stdout)["phase"] == "swapped"
    found = run("search", "how are generators closed", "--json", DATABASE_URL=url)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"]


@pytest.mark.parametrize(
    ("prepare", "arguments"),
    [
        (lambda *_: None, ["migrate"]),
        (fill, ["migrate", "--retry-quarantined"]),
        (lambda *_: None, ["text-index"]),
        (fill, ["rollback", "--yes"]),
        (fill_and_swap, ["rollback", "--yes"]),
        (fill_and_swap, ["retire", "--yes"]),
    ],
    ids=["migrate", "retry", "text-index", "rollback-before-swap", "rollback", "retire"],
)
def test_commands_that_change_something_are_refused_before_they_do(
    run: Run,  # noqa: F811
    pooled: Pooled,
    database: Database,
    migration: Migration,
    prepare: Callable[..., object],
    arguments: list[str],
) -> None:
    prepare(migration)
    before = schema_of(database)
    url = pooled("transaction")
    result = run(*arguments, DATABASE_URL=url)
    assert result.returncode == 2
    said = " ".join(result.stderr.split())
    assert "nothing was changed" in said
    assert "pool_mode = session" in said
    assert schema_of(database) == before
    assert find_behind(url) == []


def test_alembic_is_refused_before_it_makes_its_version_table(
    pooled: Pooled, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = pooled("transaction")
    for name, value in environment(settings, DATABASE_URL=url).items():
        monkeypatch.setenv(name, value)
    before = schema_of(database)
    with pytest.raises(CommandError, match="pool_mode = session"):
        command.upgrade(alembic_config(), "head")
    command.current(alembic_config())
    assert schema_of(database) == before
    assert find_behind(url) == []


@pytest.mark.thorough
def test_a_whole_migration_goes_through_a_pool_of_sessions(run: Run, pooled: Pooled) -> None:  # noqa: F811
    """One that clears nothing itself, so that what is clean afterwards is clean by us."""
    url = pooled("session", server_reset_query="", max_client_conn="100", default_pool_size="8")
    for arguments, phase in [
        (["--set", "INDEX_METHOD=hnsw", "migrate"], "swapped"),
        (["text-index"], "swapped"),
        (["search", "how are generators closed", "--mode", "hybrid"], "swapped"),
        (["rollback", "--yes"], "backfilled"),
        (["migrate", "--yes"], "swapped"),
        (["retire", "--yes", "--reclaim"], "retired"),
    ]:
        result = run(*arguments, DATABASE_URL=url)
        assert result.returncode == 0, (arguments, result.stderr)
        assert find_behind(url) == [], arguments
        status = json.loads(run("status", "--json", DATABASE_URL=url).stdout)
        assert (status["phase"], status["pending"]) == (phase, 0)
