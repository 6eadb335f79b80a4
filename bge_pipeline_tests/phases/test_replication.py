"""Beside logical replication: every kind of publication, the application's writes, and subscribers that follow a migration."""

from __future__ import annotations

import re

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.publications import find_replication
from bge_pipeline.database.quarantine import list_quarantined
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.errors import TargetTableError
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.surroundings import told_replication
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.partitions import divide
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    Wrapped,
    administer,
    execute,
    fill,
    fill_and_swap,
    put_in_quarantine,
    scalar,
    schema_of,
    swap,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

KINDS = {
    "all tables": "FOR ALL TABLES",
    "a schema": "FOR TABLES IN SCHEMA public",
    "the table": "FOR TABLE segments",
    "the table and its schema": "FOR TABLE sources, TABLE segments, TABLES IN SCHEMA public",
    "some columns": "FOR TABLE segments (id, text)",
}
QUARANTINE, JOURNAL = "segments_embedding_quarantine", "segments_embedding_journal"


def told(database, settings):
    with database.autocommit() as connection:
        state = require_table(Migration(database, settings))
        return told_replication(
            find_replication(connection, state.table), state, "embedding_384", VectorType("vector", 384)
        )


def statements(database, settings):
    """What a subscriber has to run before expand, after the swap, and after retire, as plan says it."""
    line = told(database, settings)[0]
    return re.fullmatch(
        r".* before expand: (.*) When it stops after the swap: (.*) After retire: (.*)", line, re.DOTALL
    ).groups()


def chokes(texts):
    """A model that one text is too much for."""
    if any("poison" in text for text in texts):
        raise ValueError("poison")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before expand", "after expand"])
def test_an_application_on_a_published_table_goes_on_writing(database, migration, kind, when):
    if when == "before expand":
        execute(database, f"CREATE PUBLICATION p {KINDS[kind]}")
    expand(migration, ENCODER.space)
    if when == "after expand":
        execute(database, f"CREATE PUBLICATION p {KINDS[kind]}")
    execute(database, "UPDATE segments SET text = 'poison' WHERE id IN (1, 2, 3)")
    assert backfill(migration, Wrapped(before=chokes)).quarantined == 3
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    execute(database, "DELETE FROM segments WHERE id = 2")
    fill(migration)
    with database.autocommit() as connection:
        assert [row.row_id for row in list_quarantined(connection, SEGMENTS)] == ["3"]
    swap(migration)
    execute(database, "UPDATE segments SET text = 'yet another' WHERE id = 3")
    assert read_status(migration).pending == 1
    retire(migration)


def test_every_table_of_ours_has_a_primary_key(database, migration):
    before = {row[0] for row in execute(database, "SELECT relname FROM pg_class WHERE relkind = 'r'")}
    fill_and_swap(migration)
    ours = execute(
        database,
        "SELECT relname, EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) FROM pg_class c "
        "WHERE relkind = 'r' AND relname <> ALL (:before)",
        before=list(before),
    )
    assert sorted(ours) == [(JOURNAL, True), (QUARANTINE, True)]


def make_earlier(database):
    """Quarantine and trigger as the first version left them."""
    execute(database, f"DROP TABLE {QUARANTINE}")
    execute(
        database,
        f"CREATE TABLE {QUARANTINE} AS SELECT id AS row_id, CAST('' AS text) AS error, now() AS quarantined_at "
        f"FROM segments WITH NO DATA; CREATE UNIQUE INDEX {QUARANTINE}_key ON {QUARANTINE} (row_id); "
        f"INSERT INTO {QUARANTINE} VALUES (1, 'bad', now()), (99999, 'gone', now())",
    )
    execute(
        database,
        'DROP TRIGGER "~segments_embedding_stale" ON segments; '
        "CREATE OR REPLACE FUNCTION zz_segments_embedding_stale() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        f"$$ BEGIN NEW.embedding_384 = NULL; DELETE FROM {QUARANTINE} WHERE row_id = OLD.id; RETURN NEW; END $$; "
        "CREATE TRIGGER zz_segments_embedding_stale BEFORE UPDATE ON segments FOR EACH ROW "
        "WHEN (OLD.text IS DISTINCT FROM NEW.text) EXECUTE FUNCTION zz_segments_embedding_stale()",
    )


@pytest.mark.parametrize("publication", [None, "FOR ALL TABLES"])
def test_an_installation_of_an_earlier_version_is_mended_when_expand_is_repeated(database, migration, publication):
    expand(migration, ENCODER.space)
    whole = schema_of(database)
    make_earlier(database)
    if publication:
        execute(database, f"CREATE PUBLICATION p {publication}")
        with pytest.raises(DBAPIError, match="replica identity"):
            execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    assert schema_of(database) != whole
    expand(migration, ENCODER.space)
    assert schema_of(database) == whole
    assert execute(database, f"SELECT row_id FROM {QUARANTINE}") == [(1,)]
    assert backfill(migration, ENCODER).pending_after == 0
    assert scalar(database, "SELECT embedding_384 FROM segments WHERE id = 1") is None, "still in quarantine"
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")
    assert read_status(migration).pending == 1


@pytest.mark.parametrize(
    "finish",
    [swap, lambda migration: (swap(migration), retire(migration))],
)
def test_a_finished_table_is_mended_too_and_a_third_call_changes_nothing(database, settings, finish):
    fill(Migration(database, settings))
    finish(Migration(database, settings))
    whole = schema_of(database)
    make_earlier(database)
    with pytest.raises(DBAPIError, match="embedding_384"):
        execute(database, "UPDATE segments SET text = 'another text' WHERE id = 2")
    expand(Migration(database, settings), ENCODER.space)
    assert schema_of(database) == whole
    execute(database, "UPDATE segments SET text = 'another text' WHERE id = 2")
    with database.transaction() as application:
        application.exec_driver_sql("LOCK TABLE segments IN ROW EXCLUSIVE MODE")
        expand(Migration(database, settings), ENCODER.space)
    assert schema_of(database) == whole


def test_a_lost_quarantine_is_named_by_the_backfill_and_made_again_by_expand(database, migration):
    expand(migration, ENCODER.space)
    execute(database, f"DROP TABLE {QUARANTINE}")
    assert read_status(migration).pending == 300
    with pytest.raises(Exception, match="is missing, of an earlier version") as refused:
        backfill(migration, ENCODER)
    assert "bge-pipeline migrate" in refused.value.next_step
    assert fill(migration).pending_after == 0


@pytest.mark.parametrize(
    ("prepare", "remedy"),
    [
        (
            "ALTER TABLE segments REPLICA IDENTITY NOTHING",
            'ALTER TABLE "public"."segments" REPLICA IDENTITY USING INDEX "segments_pkey";',
        ),
        (
            "ALTER TABLE segments DROP CONSTRAINT segments_pkey, ADD UNIQUE (id)",
            'ALTER TABLE "public"."segments" REPLICA IDENTITY USING INDEX "segments_id_key";',
        ),
        (
            "ALTER TABLE segments DROP CONSTRAINT segments_pkey, ADD UNIQUE (id) DEFERRABLE",
            'ALTER TABLE "public"."segments" REPLICA IDENTITY FULL;',
        ),
    ],
    ids=["nothing", "no primary key", "deferrable"],
)
def test_a_table_whose_updates_postgres_refuses_is_refused_before_anything_is_changed(
    database, migration, prepare, remedy
):
    execute(database, prepare)
    execute(database, "CREATE PUBLICATION p FOR TABLE segments")
    before = schema_of(database)
    with pytest.raises(TargetTableError, match="no replica identity, and publication p publishes updates") as refused:
        expand(migration, ENCODER.space)
    assert refused.value.next_step == remedy
    assert schema_of(database) == before
    execute(database, remedy)
    assert fill(migration).rows == 300


def test_a_publication_of_inserts_alone_needs_no_replica_identity(database, migration):
    execute(database, "ALTER TABLE segments REPLICA IDENTITY NOTHING")
    execute(database, "CREATE PUBLICATION p FOR TABLE segments WITH (publish = 'insert')")
    assert fill(migration).rows == 300


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_publication_is_told_apart(database, settings, kind):
    assert told(database, settings) == ()
    execute(database, f"CREATE PUBLICATION shop {KINDS[kind]}")
    (line,) = told(database, settings)
    assert line.startswith("publication shop (")
    assert ("ADD COLUMN" in line) == (kind != "some columns")
    assert "every row of the backfill is sent" in line


def test_a_subscriber_that_would_mix_two_models_is_told_so(database, make_settings):
    execute(database, "CREATE PUBLICATION shop FOR TABLE segments")
    with database.autocommit() as connection:
        state = require_table(Migration(database, make_settings()))
        replication = find_replication(connection, state.table)
    (line,) = told_replication(replication, state, "embedding_1536", VectorType("vector", 1536))
    assert "would put vectors of both models into one column" in line
    assert "RENAME" not in line


def test_a_full_replica_identity_is_told(database, settings):
    execute(database, "CREATE PUBLICATION shop FOR TABLE segments")
    execute(database, "ALTER TABLE segments REPLICA IDENTITY FULL")
    assert "logged with its old vectors too" in told(database, settings)[1]


@pytest.fixture(scope="module")
def logical_server():
    """A server that decodes its log."""
    server = OwnServer.temporary()
    server.set(wal_level="logical", fsync="off", wal_retrieve_retry_interval="100ms")
    yield server
    server.remove()


reads_replicated_vectors = pytest.mark.pgvector("0.6")
"""Before, an applied UPDATE was cut off: malformed vector literal."""


class Pair:
    """A published database with the demo table, and a subscriber with a copy of it, on one server."""

    def __init__(self, url, settings):
        for name in ("publisher", "subscriber"):
            administer(url, f"CREATE DATABASE {name}")
        self.settings = settings
        self.publisher, self.subscriber = (Database(url.set(database=n)) for n in ("publisher", "subscriber"))
        for database in (self.publisher, self.subscriber):
            create_demo_table(database, settings, 30)
        execute(self.subscriber, "TRUNCATE segments, sources")

    def subscribe(self, publication):
        """Copy what is there, then follow; on one server the slot has to be made first."""
        execute(self.publisher, f"CREATE PUBLICATION shop {publication}")
        execute(self.publisher, "SELECT pg_create_logical_replication_slot('shop', 'pgoutput')")
        host = self.publisher.url.query["host"]
        with self.subscriber.autocommit() as connection:
            connection.exec_driver_sql(
                f"CREATE SUBSCRIPTION shop CONNECTION 'host={host} dbname=publisher user=postgres' PUBLICATION shop "
                "WITH (create_slot = false, slot_name = shop)"
            )
        wait_until(self.is_followed, 60)

    def is_followed(self):
        """Whether the subscriber's rows are those of the publisher."""
        query = "SELECT id, text, embedding::text FROM segments ORDER BY id"
        return execute(self.publisher, query) == execute(self.subscriber, query)

    def run_at_the_subscriber(self, script):
        with self.subscriber.autocommit() as connection:
            connection.exec_driver_sql(script)

    def close(self, url):
        with self.subscriber.autocommit() as connection:
            connection.exec_driver_sql("ALTER SUBSCRIPTION shop DISABLE")
            connection.exec_driver_sql("ALTER SUBSCRIPTION shop SET (slot_name = NONE)")
            connection.exec_driver_sql("DROP SUBSCRIPTION shop")
        self.publisher.close()
        self.subscriber.close()
        slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        wait_until(lambda: _runs(url.set(database="publisher"), slots), 30)
        for name in ("publisher", "subscriber"):
            administer(url, f"DROP DATABASE {name} WITH (FORCE)")


def _runs(url, statement):
    try:
        administer(url, statement)
    except DBAPIError:
        return False
    return True


@pytest.fixture
def pair(logical_server, make_settings):
    url = logical_server.url
    settings = make_settings(database_url=url.set(database="publisher", drivername="postgresql").render_as_string())
    pair = Pair(url, settings)
    yield pair
    pair.close(url)


@pytest.mark.parametrize("kind", ["all tables", "a schema", "the table"])
@pytest.mark.thorough
def test_a_subscriber_that_does_what_plan_says_follows_a_migration(pair, kind):
    publisher, settings = pair.publisher, pair.settings
    pair.subscribe(KINDS[kind])
    wait_until(lambda: told(publisher, settings)[1].endswith(": shop"))  # its first copy has a slot of its own
    assert told(pair.subscriber, settings)[0].startswith("subscription shop fills the table from elsewhere")
    add, exchange, drop = statements(publisher, settings)
    pair.run_at_the_subscriber(add)
    fill(Migration(publisher, settings))
    execute(publisher, "UPDATE segments SET text = 'written meanwhile' WHERE id = 1")
    put_in_quarantine(publisher, 1)
    execute(publisher, "UPDATE segments SET text = 'written again' WHERE id = 1")
    query = "SELECT id, text, embedding_384::text FROM segments ORDER BY id"
    wait_until(lambda: execute(publisher, query) == execute(pair.subscriber, query), 30)
    fill_and_swap(Migration(publisher, settings))
    pair.run_at_the_subscriber(exchange)
    execute(publisher, "UPDATE segments SET text = 'written after' WHERE id = 2")
    backfill(Migration(publisher, settings), ENCODER)
    wait_until(pair.is_followed, 60)
    assert wrong_vectors(pair.subscriber, ENCODER, "embedding") == []
    assert scalar(pair.subscriber, "SELECT count(embedding) FROM segments") == 30
    retire(Migration(publisher, settings))
    pair.run_at_the_subscriber(drop)
    execute(publisher, "UPDATE segments SET speaker_label = 'last', text = 'the last' WHERE id = 3")
    wait_until(pair.is_followed, 60)


@pytest.mark.parametrize(("options", "layout"), [("", "hash"), (" WITH (publish_via_partition_root)", "range")])
@pytest.mark.thorough
def test_subscribers_of_a_partitioned_table_follow_a_migration(pair, options, layout):
    publisher, settings = pair.publisher, pair.settings
    divide(publisher, "hash")
    divide(pair.subscriber, layout)
    pair.subscribe(KINDS["the table"] + options)
    add, exchange, drop = statements(publisher, settings)
    pair.run_at_the_subscriber(add)
    fill_and_swap(Migration(publisher, settings))
    pair.run_at_the_subscriber(exchange)
    execute(publisher, "UPDATE segments SET text = 'written after' WHERE id = 2")
    backfill(Migration(publisher, settings), ENCODER)
    wait_until(pair.is_followed, 60)
    assert wrong_vectors(pair.subscriber, ENCODER, "embedding") == []
    assert scalar(pair.subscriber, "SELECT count(embedding) FROM segments") == 30
    retire(Migration(publisher, settings))
    pair.run_at_the_subscriber(drop)
    execute(publisher, "UPDATE segments SET text = 'the last' WHERE id = 3")
    wait_until(pair.is_followed, 60)


@reads_replicated_vectors
def test_a_subscriber_that_nobody_told_stops_and_goes_on_when_it_is(pair, logical_server):
    publisher, settings = pair.publisher, pair.settings
    pair.subscribe(KINDS["the table"])
    add, exchange, _ = statements(publisher, settings)
    fill(Migration(publisher, settings))
    wait_until(lambda: 'missing replicated column: "embedding_384"' in logical_server.log, 60)
    pair.run_at_the_subscriber(add)
    wait_until(lambda: scalar(pair.subscriber, "SELECT count(embedding_384) FROM segments") == 30, 60)
    swap(Migration(publisher, settings))
    execute(publisher, "UPDATE segments SET speaker_label = 'x', text = 'written after'")
    backfill(Migration(publisher, settings), ENCODER)
    wait_until(lambda: 'missing replicated column: "embedding_1536"' in logical_server.log, 60)
    pair.run_at_the_subscriber(exchange)
    wait_until(pair.is_followed, 60)


@reads_replicated_vectors
def test_our_own_tables_are_not_sent_to_subscribers_of_all_tables(pair):
    pair.subscribe(KINDS["all tables"])
    pair.run_at_the_subscriber('ALTER TABLE segments ADD COLUMN "embedding_384" vector(384)')
    fill(Migration(pair.publisher, pair.settings))
    published = execute(pair.publisher, "SELECT tablename FROM pg_publication_tables ORDER BY 1")
    assert published == [("segments",), ("sources",)]
    assert scalar(pair.publisher, f"SELECT count(*) FROM {JOURNAL} WHERE act <> 'worker'") == 2
    wait_until(lambda: scalar(pair.subscriber, "SELECT count(embedding_384) FROM segments") == 30, 30)


def test_tables_of_an_earlier_version_are_taken_out_of_publications_of_all_tables(database, migration):
    fill(migration)
    execute(database, "CREATE PUBLICATION p FOR ALL TABLES")
    execute(database, f"CREATE PUBLICATION q FOR TABLE {JOURNAL}")
    expand(migration, ENCODER.space)
    kinds = dict(
        map(tuple, execute(database, "SELECT relname, relpersistence::text FROM pg_class WHERE relkind = 'r'"))
    )
    assert (kinds[QUARANTINE], kinds[JOURNAL]) == ("u", "p"), "what somebody published on purpose stays"
    assert scalar(database, f"SELECT count(*) FROM {JOURNAL} WHERE act <> 'worker'") == 3
