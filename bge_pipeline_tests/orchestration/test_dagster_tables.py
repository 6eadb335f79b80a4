"""Dagster's tables are whole after a process was killed while they were made."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from bge_pipeline.database.connection import normalise_url
from bge_pipeline.orchestration.storage import PipelineStorage

FIRST_AND_LAST = {"runs", "kvs", "event_logs", "asset_check_executions", "jobs", "job_ticks"}


@pytest.fixture
def engine(new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch):
    """Of an empty database for Dagster's records, which the environment names."""
    url = new_database_url()
    monkeypatch.setenv("DAGSTER_DATABASE_URL", url)
    return create_engine(normalise_url(url), poolclass=NullPool)


def open_storage() -> PipelineStorage:
    return PipelineStorage.from_config_value(None, {})


def tables(engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def execute(engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_a_process_that_is_killed_while_it_makes_them_leaves_nothing_half_made(engine):
    open_storage()
    whole, marks = tables(engine), "SELECT count(*) FROM secondary_indexes"
    with engine.connect() as connection:
        marked = connection.execute(text(marks)).scalar_one()
    for milliseconds in (10, 20, 30, 40, 50, 60, 75, 90, 120):
        execute(engine, f"DROP TABLE {', '.join(sorted(whole - {'segments', 'sources'}))} CASCADE")
        child = os.fork()
        if child == 0:
            open_storage()
            os._exit(0)
        time.sleep(milliseconds / 1_000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        open_storage()
        assert tables(engine) == whole
        with engine.connect() as connection:
            assert connection.execute(text(marks)).scalar_one() == marked


@pytest.mark.parametrize("lost", ["asset_check_executions", "kvs", "job_ticks"])
def test_what_is_missing_is_made(engine, lost):
    open_storage()
    execute(engine, f"DROP TABLE {lost}")

    storage = open_storage()
    assert tables(engine) >= FIRST_AND_LAST
    assert storage.event_log_storage.supports_asset_checks


def test_tables_of_an_older_dagster_are_left_to_its_own_migration(engine):
    open_storage()
    execute(engine, "DROP TABLE asset_check_executions")
    execute(engine, "UPDATE alembic_version SET version_num = '16e3115a602a'")
    open_storage()
    assert "asset_check_executions" not in tables(engine)
