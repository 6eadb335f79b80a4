"""EMBEDDING_PROVIDER=openai under Dagster: runs go all the way by the endpoint, and its key is in none of their records."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline_tests.endpoint_server import KEY, EndpointServer, error, serving
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner
from bge_pipeline_tests.support import pending_ids, wrong_vectors

pytestmark = pytest.mark.pgvector


@pytest.fixture
def server(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    with serving() as served:
        for name, value in (served.environment() | {"EMBEDDING_PRICE_PER_MILLION": "100"}).items():
            monkeypatch.setenv(name, value)
        yield served


def records_of(instance: dg.DagsterInstance, run: dg.ExecuteInProcessResult) -> str:
    """All that Dagster keeps of a run: its events with their metadata, and its configuration."""
    kept = [dg.serialize_value(entry) for entry in instance.all_logs(run.run_id)]
    return "\n".join([*kept, dg.serialize_value(instance.get_run_by_id(run.run_id))])


def test_the_three_steps_go_by_the_endpoint_and_no_record_holds_the_key(
    run: Runner, server: EndpointServer, instance: dg.DagsterInstance, database: Database
) -> None:
    runs = [run("expand_job")]
    assert server.requests == []
    runs += [run.backfill(), run("swap_job")]

    assert all(done.success for done in runs)
    assert wrong_vectors(database, server.encoder, "embedding") == []
    records = "\n".join(records_of(instance, done) for done in runs)
    assert "some-model" in records
    assert KEY not in records


def test_a_wrong_key_fails_a_run_at_once_and_its_failure_does_not_hold_it(
    run: Runner, server: EndpointServer, instance: dg.DagsterInstance
) -> None:
    assert run("expand_job").success
    server.rule = lambda _: (401, {}, error(f"Incorrect API key: {KEY}"))

    failed = run("backfill_job", KEYS[0])

    assert not failed.success
    records = records_of(instance, failed)
    assert "EMBEDDING_API_KEY is missing or not accepted" in records
    assert KEY not in records
    assert len(server.requests) == 1


def test_a_budget_fails_a_partition_with_what_to_do_and_without_a_retry_and_the_next_run_goes_on(
    run: Runner,
    server: EndpointServer,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("expand_job").success
    monkeypatch.setenv("EMBEDDING_MAX_TOKENS", "1500")

    spent = run("backfill_job", KEYS[0])

    assert not spent.success
    assert "EMBEDDING_MAX_TOKENS=1500 is spent" in records_of(instance, spent)
    left = 300 - len(server.texts)
    assert 200 < left < 300
    assert len(pending_ids(database)) == left
    monkeypatch.delenv("EMBEDDING_MAX_TOKENS")
    assert run("backfill_job", KEYS[0]).success
    assert pending_ids(database) == list(range(101, 301))
