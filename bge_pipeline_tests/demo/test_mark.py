"""What bears the demo's mark is dropped, and nothing else, whatever stands beside it or depends on it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.home import SCHEMA
from bge_pipeline.demo.mark import MARK, alone, claim_schema, drop_demo_table
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.errors import LockNotAcquired, PhaseError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import (
    application,
    contents_of,
    execute,
    fill_and_swap,
    make_users_tables,
    scalar,
    wait_until,
)

pytestmark = pytest.mark.pgvector

ROWS = 40


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database: Database) -> Settings:
    """Settings of the demo's table, in a database where the user has tables of the same names."""
    make_users_tables(database)
    return make_settings(target_schema=SCHEMA)


def make_demo(database: Database, settings: Settings) -> None:
    with database.transaction() as connection:
        claim_schema(connection, SCHEMA)
    create_demo_table(database, settings, ROWS)


def functions_of(database: Database) -> int:
    count = scalar(
        database, "SELECT count(*) FROM pg_proc WHERE pronamespace = to_regnamespace(:schema)", schema=SCHEMA
    )
    return int(count)


def test_everything_of_a_migrated_demo_goes_and_the_users_tables_stay(
    database: Database, migration: Migration, settings: Settings
) -> None:
    users = contents_of(database)
    make_demo(database, settings)
    fill_and_swap(migration)
    assert len(contents_of(database, SCHEMA)) == 4

    drop_demo_table(database, settings)

    assert contents_of(database) == users
    assert contents_of(database, SCHEMA) == {}
    assert functions_of(database) == 0


def test_a_demo_can_be_made_again_after_it_was_dropped(
    database: Database, migration: Migration, settings: Settings
) -> None:
    for _ in range(2):
        drop_demo_table(database, settings)
        make_demo(database, settings)
        fill_and_swap(migration)


def test_a_second_demo_is_refused_with_the_way_to_a_first_one(database: Database, settings: Settings) -> None:
    make_demo(database, settings)
    with pytest.raises(PhaseError, match="--reset"):
        make_demo(database, settings)


def test_the_users_other_tables_in_the_demos_schema_stay(database: Database, settings: Settings) -> None:
    make_demo(database, settings)
    execute(database, f"CREATE TABLE {SCHEMA}.notes AS SELECT 1 AS note")
    drop_demo_table(database, settings)
    assert contents_of(database, SCHEMA) == {"notes": ["(1)"]}


@pytest.mark.parametrize("kind", ["view", "foreign key"])
def test_what_depends_on_the_demos_tables_keeps_them(database: Database, settings: Settings, kind: str) -> None:
    make_demo(database, settings)
    if kind == "view":
        execute(database, f"CREATE VIEW answers AS SELECT id, text FROM {SCHEMA}.segments")
    else:
        execute(database, f"CREATE TABLE answers (segment bigint REFERENCES {SCHEMA}.segments)")
    before = contents_of(database, SCHEMA)

    with pytest.raises(PhaseError, match="answers depends on table"):
        drop_demo_table(database, settings)

    assert contents_of(database, SCHEMA) == before


@pytest.mark.parametrize("comment", [None, "our segments", f"{MARK}, or so"])
def test_a_schema_without_the_mark_is_neither_taken_nor_emptied(
    database: Database, settings: Settings, comment: str | None
) -> None:
    make_users_tables(database, SCHEMA)
    execute(database, f"COMMENT ON SCHEMA {SCHEMA} IS {'NULL' if comment is None else repr(comment)}")
    before = contents_of(database, SCHEMA)

    with pytest.raises(PhaseError, match=f'the schema "{SCHEMA}" is not the demo\'s'):
        drop_demo_table(database, settings)
    with pytest.raises(PhaseError, match=f'the schema "{SCHEMA}" is not the demo\'s'):
        make_demo(database, settings)

    assert contents_of(database, SCHEMA) == before


@pytest.mark.parametrize("table", ["segments", "sources"])
def test_a_table_of_the_users_under_a_name_of_the_demos_keeps_everything(
    database: Database, settings: Settings, table: str
) -> None:
    make_demo(database, settings)
    execute(database, f"COMMENT ON TABLE {SCHEMA}.{table} IS 'mine now'")
    before = contents_of(database, SCHEMA)

    with pytest.raises(PhaseError, match=f'"{table}" is not the demo\'s'):
        drop_demo_table(database, settings)
    with pytest.raises(PhaseError, match="is there already"):
        make_demo(database, settings)

    assert contents_of(database, SCHEMA) == before


def test_a_view_under_a_name_of_the_demos_is_left_alone(database: Database, settings: Settings) -> None:
    with database.transaction() as connection:
        claim_schema(connection, SCHEMA)
    execute(database, f"CREATE VIEW {SCHEMA}.segments AS SELECT 1 AS id")
    with pytest.raises(PhaseError, match='"segments" is not the demo\'s'):
        drop_demo_table(database, settings)
    with pytest.raises(PhaseError, match="rename or move that table"):
        make_demo(database, settings)


def test_a_table_that_loses_its_mark_while_its_lock_is_waited_for_stays(database: Database, settings: Settings) -> None:
    make_demo(database, settings)
    outcome: list[PhaseError] = []

    def drop() -> None:
        patient = settings.model_copy(update={"lock_timeout_ms": 20_000})
        try:
            drop_demo_table(database, patient)
        except PhaseError as error:
            outcome.append(error)

    with application(database) as connection:
        connection.exec_driver_sql(f"COMMENT ON TABLE {SCHEMA}.segments IS 'mine now'")
        connection.exec_driver_sql(f"LOCK TABLE {SCHEMA}.segments IN ACCESS EXCLUSIVE MODE")
        dropping = threading.Thread(target=drop)
        dropping.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        wait_until(lambda: bool(scalar(database, waiting)))
        connection.commit()
        dropping.join(timeout=30)

    assert ["is not the demo's" in str(error) for error in outcome] == [True]
    assert "segments" in contents_of(database, SCHEMA)


def test_tables_in_use_are_not_waited_for_for_ever(database: Database, settings: Settings) -> None:
    make_demo(database, settings)
    with application(database) as connection:
        connection.exec_driver_sql(f"SELECT count(*) FROM {SCHEMA}.segments")
        with pytest.raises(LockNotAcquired):
            drop_demo_table(database, settings)


def test_one_demo_at_a_time(database: Database) -> None:
    with alone(database), pytest.raises(LockNotAcquired, match="another bge-pipeline demo"), alone(database):
        pass
    with alone(database):
        pass
