"""A file system that really is full, under the table, its index and the log: nothing is lost, and it goes on with more space."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.errors import DatabaseUnavailable, DiskFull, IndexBuildFailed
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.small_disk import SmallDisk
from bge_pipeline_tests.support import ENCODER, Wrapped, as_it_stands, fill, pending_ids, swap, wrong_vectors

pytestmark = pytest.mark.pgvector

ROWS = 300
KILOBYTE = 1 << 10
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server of this module's own: its disks are mounted and taken away."""
    server = OwnServer.temporary()
    yield server
    server.remove()


@pytest.fixture
def disk(server: OwnServer) -> Iterator[SmallDisk]:
    """A tablespace `small` on a disk of its own."""
    disk = SmallDisk(server.folder, megabytes=32)
    with Database(server.url) as maintenance, maintenance.autocommit() as connection:
        connection.exec_driver_sql(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
    yield disk
    try:
        with Database(server.url) as maintenance, maintenance.autocommit() as connection:
            connection.exec_driver_sql("DROP TABLESPACE small")
    finally:
        disk.remove()


@pytest.fixture
def database(server: OwnServer, disk: SmallDisk) -> Iterator[Database]:
    """A database with the demo table, whose data are elsewhere until a test moves them onto the small disk."""
    with Database(server.url) as maintenance, maintenance.autocommit() as connection:
        connection.exec_driver_sql("CREATE DATABASE app")
    with Database(server.url.set(database="app")) as database:
        create_demo_table(database, load_settings(_env_file=None), ROWS)
        yield database
    with Database(server.url) as maintenance, maintenance.autocommit() as connection:
        connection.exec_driver_sql("DROP DATABASE app WITH (FORCE)")


@pytest.fixture
def settings(make_settings) -> Settings:
    found: Settings = make_settings(backfill_batch_rows=50)
    return found


def test_a_table_that_has_no_space_keeps_what_was_committed_and_goes_on_when_there_is(database, settings, disk):
    expand(Migration(database, settings), ENCODER.space)
    with database.autocommit() as connection:  # without room in pages that are half empty
        connection.exec_driver_sql("VACUUM FULL segments")
    as_it_stands(database, "ALTER TABLE segments SET TABLESPACE small")
    disk.fill(but_bytes=200 * KILOBYTE)

    with pytest.raises(DiskFull, match="No space left on device") as refused:
        backfill(Migration(database, settings), ENCODER)

    committed = ROWS - len(pending_ids(database))
    assert 0 < committed < ROWS
    assert refused.value.state == f"{committed} rows are committed, nothing is lost"
    assert "free space" in str(refused.value.next_step)
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    assert read_status(Migration(database, settings)).pending == ROWS - committed

    disk.make_space()
    assert backfill(Migration(database, settings), ENCODER).rows == ROWS - committed
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    assert swap(Migration(database, settings)).exchanged


def test_an_index_that_has_no_space_leaves_search_as_it_is_and_is_built_when_there_is(database, settings, disk):
    fill(Migration(database, settings))
    before = index_names(database)
    as_it_stands(database, "ALTER DATABASE app SET default_tablespace = small")
    database.close()  # what is open keeps the old default
    disk.fill(but_bytes=100 * KILOBYTE)

    with pytest.raises(IndexBuildFailed, match="No space left on device") as refused:
        swap(Migration(database, settings))

    assert "free space" in str(refused.value.next_step)
    assert index_names(database) == before
    status = read_status(Migration(database, settings))
    assert (status.phase, status.dimensions, status.searched_index.valid) == ("backfilled", 1536, True)

    disk.make_space()
    assert swap(Migration(database, settings)).exchanged
    assert read_status(Migration(database, settings)).index.valid
    as_it_stands(database, "DROP TABLE segments CASCADE")  # with its index, so that the tablespace can go


def index_names(database):
    rows = as_it_stands(database, "SELECT indexrelid::regclass::text, indisvalid FROM pg_index "
                                  "WHERE indrelid = 'segments'::regclass ORDER BY 1")  # fmt: skip
    return [tuple(row) for row in rows]


class TestLog:
    """The server's write-ahead log: PostgreSQL stops altogether when it cannot be written."""

    @pytest.fixture
    def server(self) -> Iterator[OwnServer]:
        server = OwnServer.temporary()
        yield server
        server.remove()

    @pytest.fixture
    def disk(self, server: OwnServer) -> Iterator[SmallDisk]:
        disk = SmallDisk(server.folder, megabytes=192)
        server.move_log_to(disk.folder / "pg_wal")
        yield disk
        server.stop()
        disk.remove()

    def test_a_log_that_has_no_space_stops_the_server_and_nothing_is_lost(self, server, database, settings, disk):
        expand(Migration(database, settings), ENCODER.space)
        batches = []

        def write_until_full(_texts):
            batches.append(1)
            if len(batches) == 3:
                disk.fill(but_bytes=MEGABYTE)
                with pytest.raises(DatabaseUnavailable):
                    as_it_stands(database, "CREATE TABLE noise AS SELECT repeat(md5(n::text), 100) "
                                           "FROM generate_series(1, 100000) n")  # fmt: skip

        impatient = settings.model_copy(update={"backfill_max_attempts": 2})
        with pytest.raises(DatabaseUnavailable) as refused:
            backfill(Migration(database, impatient), Wrapped(before=write_until_full))
        assert "run the backfill again when the database answers" in str(refused.value.next_step)
        assert "No space left on device" in server.log

        disk.make_space()
        server.restart()
        committed = ROWS - len(pending_ids(database))
        assert 0 < committed < ROWS
        assert wrong_vectors(database, ENCODER, "embedding_384") == []
        assert backfill(Migration(database, settings), ENCODER).rows == ROWS - committed
        assert wrong_vectors(database, ENCODER, "embedding_384") == []
        assert swap(Migration(database, settings)).exchanged
