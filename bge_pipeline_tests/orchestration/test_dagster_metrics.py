"""What is served of Dagster's records: as they are, while their database is slow, and when it is gone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.dagster_metrics import DagsterMetrics
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.table_metrics import AllTables, TableMetrics
from bge_pipeline.settings import Settings
from bge_pipeline.telemetry import looking
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner
from bge_pipeline_tests.support import administer, application, scalar, wait_until
from bge_pipeline_tests.telemetry.conftest import Samples, parsed, total

pytestmark = pytest.mark.pgvector

Scrape = Callable[[], Samples]


@pytest.fixture
def scrape(
    instance: dg.DagsterInstance, migration: Migration, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scrape]:
    """What `bge-pipeline dev` serves of an expanded table and of Dagster, at both of which it looks again and again."""
    assert run("expand_job").success
    monkeypatch.setattr(looking, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(looking, "_SHARE_OF_TIME", 1.0)
    registry = CollectorRegistry()
    table, dagster = TableMetrics(migration), DagsterMetrics(instance, [THE_TABLE])
    registry.register(AllTables([table]))
    registry.register(dagster)

    def served() -> Samples:
        return parsed(generate_latest(registry).decode())

    with table.keeping_up(), dagster.keeping_up():
        wait_until(lambda: total(served(), "bge_pipeline_table_readable") == 1, 30)
        wait_until(lambda: of_dagster(served()) == (1, 1, 0, 3), 30)
        yield served


@pytest.fixture
def records(settings: Settings) -> Iterator[Database]:
    """The database of Dagster's records."""
    assert settings.dagster_database_url is not None
    with Database(settings.dagster_database_url.get_secret_value()) as database:
        yield database


def of_dagster(found: Samples) -> tuple[float | None, ...]:
    """Whether its records could be read, runs that succeeded, partitions that are done and to come."""
    return (
        found.get(("bge_pipeline_dagster_readable", ())),
        found.get(("bge_pipeline_dagster_runs", (("status", "succeeded"),))),
        found.get(("bge_pipeline_dagster_partitions", (("state", "done"),))),
        found.get(("bge_pipeline_dagster_partitions", (("state", "to_come"),))),
    )


def test_runs_and_partitions_are_counted_beside_the_table(scrape: Scrape, run: Runner):
    assert run("backfill_job", KEYS[0]).success
    wait_until(lambda: of_dagster(scrape()) == (1, 2, 1, 2), 30)
    wait_until(lambda: total(scrape(), "bge_pipeline_table_pending_rows") == 200, 30)


def test_a_scrape_does_not_wait_for_records_that_are_slow(scrape: Scrape, records: Database):
    waiting = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE NOT granted AND datname = current_database() AND relation = 'runs'::regclass"
    )
    with ThreadPoolExecutor() as threads, application(records) as busy:
        busy.execute(text("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE"))
        wait_until(lambda: scalar(records, waiting) > 0, 30)

        found = threads.submit(scrape).result(timeout=10)

        assert scalar(records, waiting) > 0
        assert of_dagster(found) == (1, 1, 0, 3)
        assert total(found, "bge_pipeline_table_readable") == 1


def test_records_that_are_gone_take_nothing_of_the_table_with_them(
    scrape: Scrape, records: Database, server_url: URL, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dagster_postgres.utils.calculate_delay", lambda **_: 0.0)
    administer(server_url, f"DROP DATABASE {records.url.database} WITH (FORCE)")

    wait_until(lambda: of_dagster(scrape()) == (0, None, None, None), 30)

    assert total(scrape(), "bge_pipeline_table_readable") == 1
    assert total(scrape(), "bge_pipeline_table_pending_rows") == 300
