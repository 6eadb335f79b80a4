"""Commands with EMBEDDING_PROVIDER=openai: what they say before anything is sent, what they ask, and the key in no output."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.settings import Settings
from bge_pipeline_tests.endpoint_server import KEY, EndpointServer, error, serving
from bge_pipeline_tests.roads import run_command
from bge_pipeline_tests.support import columns_of, pending_ids, wrong_vectors

pytestmark = pytest.mark.pgvector

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with serving() as served:
        yield served


@pytest.fixture
def run(settings: Settings, server: EndpointServer, tmp_path: Path) -> Run:
    """Runs the command with the server as its endpoint; `answer` is typed at a terminal, without one there is none."""

    def command(*arguments: str, answer: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        own = {
            "EMBEDDING_PROVIDER": "openai",
            "EMBEDDING_MODEL": "some-model",
            "EMBEDDING_API_URL": server.url,
            "EMBEDDING_API_KEY": KEY,
            "EMBEDDING_PRICE_PER_MILLION": "100",
            "COLUMNS": "500",
        }
        done = run_command(settings, tmp_path, *arguments, answer=answer, **(own | variables))
        assert KEY not in done.stdout + done.stderr
        return done

    return command


def test_plan_says_tokens_and_cost_and_sends_nothing_where_nobody_agrees(run: Run, server: EndpointServer) -> None:
    alone = run("plan", "--json")
    declined = run("plan", "--json", answer="n")

    assert (alone.returncode, declined.returncode) == (0, 0)
    assert server.requests == []
    for done in (alone, declined):
        planned = json.loads(done.stdout)
        endpoint = planned["endpoint"]
        assert endpoint["tokens"] == round(planned["tokens"]["mean"] * 300)
        assert endpoint["cost"] == pytest.approx(endpoint["tokens"] / 10_000)
        assert planned["texts_per_second"] == 0
    assert (
        f"tokens (estimated from characters; EMBEDDING_TOKENIZER has them counted) to {endpoint['host']}"
        in declined.stderr
    )
    assert "at 100 a million" in declined.stderr
    assert "256 texts of" in declined.stderr


@pytest.mark.parametrize(("arguments", "answer"), [(["--yes"], None), ([], "y")])
def test_plan_measures_where_somebody_agrees(
    arguments: list[str], answer: str | None, run: Run, server: EndpointServer
) -> None:
    planned = run("plan", "--json", *arguments, answer=answer)

    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["texts_per_second"] > 0
    assert len(server.texts) == 264
    assert ("Measure it?" in planned.stderr) is (answer is not None)


def test_migrate_asks_with_tokens_and_cost_before_anything_is_sent(
    run: Run, server: EndpointServer, database: Database
) -> None:
    declined = run("migrate", answer="n", EMBEDDING_MAX_TOKENS="5000", EMBEDDING_TOKENS_PER_MINUTE="1000")

    assert declined.returncode == 1
    assert server.requests == []
    assert "embedding_384" not in columns_of(database)
    assert f"to {server.url.split('/')[2]}: about" in declined.stderr
    assert "EMBEDDING_MAX_TOKENS=5000 makes" in declined.stderr
    assert "by the limits a minute" in declined.stderr


def test_a_budget_ends_it_with_its_own_code_and_the_same_command_goes_on(
    run: Run, server: EndpointServer, database: Database
) -> None:
    variables = {"EMBEDDING_MAX_TOKENS": "9000", "BACKFILL_BATCH_ROWS": "50"}
    first = run("migrate", "--yes", **variables)

    assert first.returncode == 7, first.stderr
    assert "EMBEDDING_MAX_TOKENS=9000 is spent" in first.stderr
    assert "State: every vector that was paid for is committed" in first.stderr
    assert 0 < len(pending_ids(database)) < 300
    assert len(server.texts) == 300 - len(pending_ids(database))
    assert run("migrate", "--yes").returncode == 0
    assert wrong_vectors(database, server.encoder, "embedding") == []


def test_a_wrong_key_ends_it_without_a_row_and_without_the_key(
    run: Run, server: EndpointServer, database: Database
) -> None:
    server.rule = lambda _: (401, {}, error(f"Incorrect API key provided: {KEY}"))
    refused = run("--verbose", "migrate", "--yes")
    assert refused.returncode == 2
    assert "EMBEDDING_API_KEY is missing or not accepted: HTTP 401, Incorrect API key provided: [key]" in refused.stderr
    assert len(pending_ids(database)) == 300


def test_a_key_is_not_taken_on_a_command_line(run: Run, server: EndpointServer) -> None:
    refused = run("--set", f"EMBEDDING_API_KEY={KEY}", "plan")
    assert refused.returncode == 2
    assert "EMBEDDING_API_KEY on a command line is seen by everybody" in refused.stderr


def test_benchmark_asks_before_a_migration_and_sends_some_hundreds_of_texts_once(
    run: Run, server: EndpointServer, tmp_path: Path
) -> None:
    alone = run("benchmark", "--json")
    assert alone.returncode == 2
    assert "Up to 500 texts of the table, and queries made of them, are sent to " in alone.stderr
    assert server.requests == []

    done = run("benchmark", "--json", "--yes", "--output", str(tmp_path / "out"), BENCHMARK_TEXTS="5000")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [run["batch_size"] for run in report["encode"]] == [256]
    assert len(server.texts) <= 2 * 300
    assert sorted(Path(path).suffix for path in report["files"].values()) == [".html", ".json", ".md"]
    assert all(Path(path).stat().st_size for path in report["files"].values())
