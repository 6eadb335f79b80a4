"""What the server cannot do is called by its name, and before anything is changed where that can be known."""

from __future__ import annotations

import time

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, DiskFull, IndexBuildFailed
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.support import (
    ENCODER,
    columns_of,
    execute,
    fill,
    fill_and_swap,
    pending_ids,
    schema_of,
    swap,
)

pytestmark = pytest.mark.pgvector

NO_SPACE = 'could not extend file "base/5/16384": No space left on device'


def fill_the_disk(database, *, after_rows):
    """Every update but the first ones ends as it does on a full disk."""
    execute(database, "CREATE SEQUENCE updates")
    execute(
        database,
        "CREATE FUNCTION extend_file() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('updates') > {after_rows} THEN RAISE EXCEPTION '{NO_SPACE}' USING ERRCODE = 'disk_full'; END IF; "
        "RETURN NEW; END $$",
    )
    execute(database, "CREATE TRIGGER extends BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION extend_file()")


class TestDiskFull:
    def test_a_backfill_ends_at_once_and_says_so(self, database, make_settings):
        settings = make_settings(backfill_batch_rows=100, backfill_max_attempts=5)
        expand(Migration(database, settings), ENCODER.space)
        fill_the_disk(database, after_rows=150)
        started = time.perf_counter()
        with pytest.raises(DiskFull, match="no space left") as refused:
            backfill(Migration(database, settings), ENCODER)
        assert time.perf_counter() - started < 10  # five attempts pause for 15 s
        assert "No space left on device" in refused.value.message
        committed = 300 - len(pending_ids(database))
        assert committed >= 100
        assert refused.value.state == f"{committed} rows are committed, nothing is lost"
        assert "free space" in refused.value.next_step

    def test_it_resumes_when_there_is_space_again(self, database, make_settings):
        settings = make_settings(backfill_batch_rows=100)
        expand(Migration(database, settings), ENCODER.space)
        fill_the_disk(database, after_rows=150)
        with pytest.raises(DiskFull):
            backfill(Migration(database, settings), ENCODER)
        execute(database, "DROP TRIGGER extends ON segments")
        left = len(pending_ids(database))
        assert 0 < left <= 200
        assert backfill(Migration(database, settings), ENCODER).rows == left
        assert pending_ids(database) == []

    def test_other_statements_say_so_too(self, database):
        fill_the_disk(database, after_rows=0)
        with pytest.raises(DiskFull), database.transaction() as connection:
            connection.exec_driver_sql("UPDATE segments SET speaker_label = 'x'")


class TestRetireThatReclaims:
    """Rewriting the table builds its indexes again, and IVFFlat's build has a least that it needs."""

    LISTS = 250

    def test_many_lists_get_the_memory_that_they_need(self, database, database_url, make_settings):
        """As a thousand lists of a large table are to the 64 MB that servers have by default."""
        execute(database, f"ALTER DATABASE {database.url.database} SET maintenance_work_mem = '1MB'")
        settings = make_settings(index_lists=self.LISTS)
        with Database(database_url) as fresh:
            fill_and_swap(Migration(fresh, settings))
            with pytest.raises(DBAPIError, match="memory required"), fresh.autocommit() as connection:
                connection.exec_driver_sql("VACUUM (FULL) segments")
            assert retire(Migration(fresh, settings), reclaim=True).rewritten
            status = read_status(Migration(fresh, settings))
        assert status.phase == "retired"
        assert status.index.valid

    def test_more_than_is_allowed_is_refused_before_the_column_goes(self, database, make_settings):
        fill_and_swap(Migration(database, make_settings(index_lists=self.LISTS)))
        before = columns_of(database)
        with pytest.raises(IndexBuildFailed, match="INDEX_MAX_MEMORY_MB is 10") as refused:
            retire(Migration(database, make_settings(index_max_memory_mb=10)), reclaim=True)
        assert refused.value.state == "nothing was dropped"
        assert columns_of(database) == before
        retire(Migration(database, make_settings(index_max_memory_mb=10)))
        assert read_status(Migration(database, make_settings())).phase == "retired"

    def test_an_hnsw_index_makes_do_with_what_is_allowed(self, database, make_settings):
        settings = make_settings(index_method="hnsw", index_max_memory_mb=1)
        fill_and_swap(Migration(database, settings))
        assert retire(Migration(database, settings), reclaim=True).rewritten

    def test_a_rewrite_that_fails_says_that_the_column_is_gone(self, database, migration):
        fill_and_swap(migration)
        execute(database, "CREATE FUNCTION f(text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$")
        execute(database, "CREATE INDEX depends ON segments (f(text))")
        execute(
            database,
            "CREATE OR REPLACE FUNCTION f(text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'not today'; END $$",
        )
        with pytest.raises(IndexBuildFailed, match="could not be rewritten: not today") as refused:
            retire(migration, reclaim=True)
        assert "the old column is dropped" in refused.value.state
        assert read_status(migration).phase == "retired"
        execute(database, "DROP INDEX depends")
        assert retire(migration, reclaim=True).rewritten


def test_a_plan_says_where_the_server_cannot_keep_the_old_index_in_memory(make_settings):
    server = OwnServer.temporary()
    try:
        server.set(shared_buffers="1MB")
        settings = make_settings(database_url=server.url.render_as_string())
        with Database(server.url) as database:
            create_demo_table(database, settings, 200)

            def crowded(**overrides):
                migration = Migration(database, make_settings(database_url=settings.database_url, **overrides))
                told = plan(migration, EmbeddingsService(ENCODER, migration.settings)).notices
                return [notice for notice in told if "shared_buffers" in notice]

            [notice] = crowded()
            assert notice.startswith("shared_buffers has 1 MB, the vector index that searches read meanwhile ")
            assert crowded(old_index="drop") == []
            server.set(shared_buffers="128MB")
            database.engine.dispose()
            assert crowded() == []
    finally:
        server.remove()


class TestPgvectorBefore07:
    """It has no halfvec, and an index on one would fail when every row has been embedded."""

    @pytest.fixture(autouse=True)
    def _old(self, database):
        execute(database, "UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")

    def test_halfvec_is_refused_before_expand(self, database, make_settings):
        settings = make_settings(index_element="halfvec")
        before = schema_of(database)
        with pytest.raises(
            ConfigurationError, match=r"INDEX_ELEMENT=halfvec: expected pgvector 0\.7 or later, got 0\.6\.2"
        ):
            expand(Migration(database, settings), ENCODER.space)
        assert schema_of(database) == before

    def test_the_plan_knows_it(self, database, make_settings):
        settings = make_settings(index_element="halfvec")
        obstacles = plan(Migration(database, settings), EmbeddingsService(ENCODER, settings)).obstacles
        assert any("INDEX_ELEMENT=halfvec" in obstacle for obstacle in obstacles)

    def test_chosen_after_the_backfill_it_is_refused_by_the_swap(self, database, make_settings):
        fill(Migration(database, make_settings()))
        with pytest.raises(ConfigurationError, match="INDEX_ELEMENT=halfvec"):
            swap(Migration(database, make_settings(index_element="halfvec")))

    def test_vector_is_not(self, migration):
        fill_and_swap(migration)
        assert read_status(migration).phase == "swapped"
