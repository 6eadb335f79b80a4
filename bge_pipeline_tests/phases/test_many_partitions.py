"""Hundreds of partitions on a server that has room for few locks: what would fail with "out of shared memory" does not begin."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.partition_locks import partition_locks
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.partitions import make_small_partitions
from bge_pipeline_tests.support import ENCODER, administer, columns_of, execute, fill, schema_of, wrong_vectors

pytestmark = pytest.mark.pgvector


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """One with as little room as PostgreSQL can have: some 500 locks."""
    server = OwnServer.temporary()
    server.set(max_locks_per_transaction="10", max_connections="20")
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def make_migration(server, make_settings):
    """The migration of a table `notes` of so many partitions."""
    opened = []

    def make(partitions: int) -> Migration:
        name = f"with_{partitions}"
        administer(server.url, f"CREATE DATABASE {name}")
        database = Database(server.url.set(database=name))
        opened.append(database)
        execute(database, "CREATE EXTENSION vector")
        make_small_partitions(database, partitions, 4)
        return Migration(
            database,
            make_settings(database_url=database.url.render_as_string(hide_password=False), target_table="notes"),
        )

    yield make
    for database in opened:
        database.close()


def planned(migration):
    return plan(migration, EmbeddingsService(ENCODER, migration.settings))


def test_more_than_there_is_room_for_is_refused_and_the_remedy_makes_room(server, make_migration):
    migration = make_migration(160)
    database = migration.database
    before = schema_of(database, "notes")
    [obstacle] = planned(migration).obstacles
    with pytest.raises(PhaseError, match="out of shared memory") as refused:
        expand(migration, ENCODER.space)
    assert refused.value.next_step in obstacle
    assert schema_of(database, "notes") == before

    administer(server.url, refused.value.next_step.partition(";")[0])
    database.engine.dispose()
    server.restart()
    assert planned(migration).obstacles == ()
    fill(migration)
    assert wrong_vectors(database, ENCODER, "embedding_384", "notes") == []
    server.set(max_locks_per_transaction="10")


def test_what_two_sessions_at_once_have_no_room_for_is_told(make_migration):
    migration = make_migration(80)
    with migration.database.autocommit() as connection:
        locks = partition_locks(connection, migration.target)
    assert locks.now == 81 * 2, "each table and its primary key"
    assert locks.during == locks.now + 80 * 2
    assert locks.during <= locks.room < 2 * locks.during
    said = planned(migration)
    assert said.obstacles == ()
    assert any(f"max_locks_per_transaction = {locks.setting}" in notice for notice in said.notices)
    expand(migration, ENCODER.space)
    assert "embedding_384" in columns_of(migration.database, "notes")


def test_where_there_is_room_nothing_is_said(make_migration):
    said = planned(make_migration(5))
    assert not any("max_locks" in notice for notice in said.notices)
