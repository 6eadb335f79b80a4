"""Dagster's own tables, whole whatever happens while they are made.

Dagster makes those of each store one by one, each in a transaction of its own, where the first of them is missing. A process
that is killed on the way leaves a store without some of its tables, and none that starts later would make them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import Engine, MetaData, create_engine, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

_TURN = "SELECT pg_advisory_lock(hashtext('bge_pipeline: tables of Dagster'))"

_MAIN_TABLES = {"runs", "event_logs", "jobs"}
"""By each of which Dagster knows whether it has made a store's."""

Storage = TypeVar("Storage", bound=DagsterPostgresStorage)


def with_whole_tables(url: URL, open_storage: Callable[[], Storage]) -> Storage:
    """The storage, after what a killed process left half made was completed.

    Tables of an older Dagster are left to `dagster instance migrate`.

    Args:
        url: of the database for Dagster's records.
        open_storage: opens it, and makes the tables of stores that have none.
    """
    engine = create_engine(url, poolclass=NullPool)
    try:
        if _are_whole(engine):
            return open_storage()
        with _alone(engine):
            is_older = _is_older(url, engine)
            if not is_older:
                _complete(engine)
            storage = open_storage()
            if not is_older:
                _note_that_they_are_new(storage)
            return storage
    finally:
        engine.dispose()


def _are_whole(engine: Engine) -> bool:
    """Whether all tables are there, and Dagster has finished with them: a run has been recorded."""
    with engine.connect() as connection:
        there = set(inspect(connection).get_table_names())
        if not all(set(store.tables) <= there for store in _stores()):
            return False
        return connection.execute(text("SELECT 1 FROM runs LIMIT 1")).first() is not None


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Of several processes that start at once one makes the tables, and the others find them."""
    with engine.connect() as connection:
        connection.execute(text(_TURN))
        yield


def _is_older(url: URL, engine: Engine) -> bool:
    if not inspect(engine).has_table("alembic_version"):
        return False
    storage = DagsterPostgresStorage(url.render_as_string(hide_password=False), should_autocreate_tables=False)
    here, newest = storage.run_storage.alembic_version() or (None, None)
    return here is not None and here != newest


def _complete(engine: Engine) -> None:
    """Make what is missing of the stores whose main table is there; the others are left to Dagster, which looks for that one.

    It notes the version of the tables of all stores whenever it makes those of one.
    """
    with engine.begin() as connection:
        there = set(inspect(connection).get_table_names())
        for store in _stores():
            if there & set(store.tables) & _MAIN_TABLES:
                store.create_all(connection)


def _note_that_they_are_new(storage: DagsterPostgresStorage) -> None:
    """Tell Dagster that they need no migration of data, as it does when it makes them; what was noted is left."""
    storage.run_storage.migrate()
    storage.run_storage.optimize()
    storage.event_log_storage.reindex_events()
    storage.event_log_storage.reindex_assets()
    storage.schedule_storage.migrate()
    storage.schedule_storage.optimize()


def _stores() -> tuple[MetaData, ...]:
    """The tables of Dagster's stores, which have no public name."""
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

    return (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)
