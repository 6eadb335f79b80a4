"""What stands on single partitions: their indexes, triggers, views, privileges, replica identity, NOT NULL."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.publications import find_replication, updates_fault
from bge_pipeline.database.table_lock import lock_table
from bge_pipeline.database.user_triggers import find_user_triggers
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import PhaseError, SwapRefused, TargetTableError
from bge_pipeline.phases import exchange
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.surroundings import told_replication
from bge_pipeline_tests.partitions import PARTITIONS, divide
from bge_pipeline_tests.phases.test_partitioned import hnsw_of
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    application,
    execute,
    fill,
    fill_and_swap,
    scalar,
    statements_run_by,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector


def obstacles(migration):
    return " ".join(plan(migration, EmbeddingsService(ENCODER, migration.settings)).obstacles)


def test_indexes_that_only_the_partitions_have_are_resembled_and_keep_their_names(database, migration):
    divide(database, "hash", index=None)
    for partition in PARTITIONS["hash"]:
        execute(
            database, f"CREATE INDEX my_{partition} ON {partition} USING hnsw (embedding vector_l2_ops) WITH (m = 8)"
        )
    said = plan(migration, EmbeddingsService(ENCODER, migration.settings))
    assert (said.index.method, said.index.metric, said.index.m) == ("hnsw", "l2", 8)
    assert [index.split()[0] for index in said.old_indexes] == ["my_part_0", "my_part_1", "my_part_2"]
    assert read_status(migration).index.name == "my_part_0"

    fill_and_swap(migration)
    assert [index[0] for index in hnsw_of(database)["part_1"]] == ["my_part_1", "my_part_1_of_embedding_1536"]
    (definition,) = execute(database, "SELECT pg_get_indexdef('my_part_1'::regclass)")[0]
    assert "(embedding vector_l2_ops)" in definition
    rollback(migration)
    (definition,) = execute(database, "SELECT pg_get_indexdef('my_part_1'::regclass)")[0]
    assert "(embedding vector_l2_ops)" in definition
    assert any(name.startswith("ix_part_1_embedding_384") for name, *_ in hnsw_of(database)["part_1"])


def test_the_old_index_is_not_dropped_before_the_swap(database, make_settings):
    divide(database)
    migration = Migration(database, make_settings(old_index="drop"))
    assert "OLD_INDEX=drop" in obstacles(migration)
    with pytest.raises(PhaseError, match="OLD_INDEX=drop") as refused:
        expand(migration, ENCODER.space)
    assert refused.value.next_step == "OLD_INDEX=keep"


def test_ids_that_come_twice_are_refused_with_statements_that_mend_it(database, migration, make_settings):
    divide(database, "time")
    execute(database, "INSERT INTO segments (id, text, created_at) VALUES (5, 'twin', '2026-04-04')")
    assert "several rows" in obstacles(migration)
    with pytest.raises(TargetTableError, match=r"several rows of .* have 'id' 5") as refused:
        expand(migration, ENCODER.space)
    for statement in refused.value.next_step.split(": ", 1)[1].split(" then ")[0].split("; "):
        execute(database, statement)
    numbered = Migration(database, make_settings(target_id_column="row_number"))
    assert fill(numbered).rows == 301
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


@pytest.mark.parametrize(
    "key", ["PRIMARY KEY (created_at, id)", "PRIMARY KEY (id, video_id, created_at)", "UNIQUE (id, created_at)"]
)
def test_a_key_that_does_not_lead_to_the_row_is_refused_with_statements_that_mend_it(database, make_settings, key):
    execute(
        database,
        "CREATE TABLE odd (id text NOT NULL, video_id text, text text, created_at date, embedding vector(1536), "
        f"{key}) PARTITION BY RANGE (created_at)",
    )
    execute(database, "CREATE TABLE odd_1 PARTITION OF odd DEFAULT")
    execute(
        database,
        "INSERT INTO odd SELECT 'a' || id, video_id, text, '2026-01-01', embedding FROM segments",
    )
    migration = Migration(database, make_settings(target_table="odd"))
    with pytest.raises(TargetTableError, match="no unique index of its own") as refused:
        expand(migration, ENCODER.space)
    way = refused.value.next_step.rsplit("  - ", 1)[-1].split(": ", 1)[1]
    for statement in way.split(" then ")[0].split("; "):
        execute(database, statement)
    migration = Migration(database, make_settings(target_table="odd", target_id_column="row_number"))
    assert fill(migration).rows == 300


def test_no_key_can_be_made_over_a_division_by_an_expression(database, make_settings):
    execute(
        database,
        "CREATE TABLE odd (id bigint NOT NULL, text text, embedding vector(3)) PARTITION BY LIST ((id % 2))",
    )
    with pytest.raises(TargetTableError) as refused:
        expand(Migration(database, make_settings(target_table="odd")), ENCODER.space)
    assert "LIST (((id % (2)::bigint)))" in refused.value.next_step


def test_a_view_of_one_partition_would_keep_reading_the_old_vectors(database, migration):
    divide(database)
    execute(database, "CREATE VIEW evens AS SELECT id, embedding FROM middle_even")
    assert "view evens" in obstacles(migration)
    fill(migration)
    with pytest.raises(SwapRefused, match="view evens"):
        swap(migration)


def test_privileges_and_a_not_null_of_one_partition_are_seen_to(database, migration):
    divide(database)
    execute(database, "ALTER TABLE low ALTER COLUMN embedding SET NOT NULL")
    execute(database, "GRANT SELECT (embedding) ON middle_odd TO PUBLIC")
    fill_and_swap(migration)
    execute(database, "INSERT INTO segments (id, text) VALUES (-1, 'no vector')")
    granted = "SELECT attname::text FROM pg_attribute WHERE attrelid = 'middle_odd'::regclass AND attacl IS NOT NULL ORDER BY 1"
    assert [row[0] for row in execute(database, granted)] == ["embedding", "embedding_1536"]


def test_so_are_those_of_a_partition_that_is_divided_again_there_and_back(database, migration):
    divide(database)
    execute(database, "GRANT SELECT (embedding) ON middle TO PUBLIC")
    granted = (
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'middle'::regclass AND attacl IS NOT NULL ORDER BY 1"
    )
    for act, names in ((fill_and_swap, ["embedding", "embedding_1536"]), (rollback, ["embedding", "embedding_384"])):
        execute(database, "ALTER TABLE middle ALTER COLUMN embedding SET NOT NULL")
        act(migration)
        assert [row[0] for row in execute(database, granted)] == names
        execute(database, "DELETE FROM segments WHERE id = 150")
        execute(database, "INSERT INTO segments (id, text) VALUES (150, 'no vector')")
        execute(database, "DELETE FROM segments WHERE id = 150")


def test_triggers_are_named_once_and_those_of_one_partition_too(database, migration):
    divide(database)
    execute(database, "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    for name, table, each in (
        ("of_all", "segments", "ROW"),
        ("of_one", "middle_odd", "ROW"),
        ("whole", "segments", "STATEMENT"),
    ):
        execute(database, f"CREATE TRIGGER {name} AFTER UPDATE ON {table} FOR EACH {each} EXECUTE FUNCTION nothing()")
    state = require_table(migration)
    with database.autocommit() as connection:
        found = find_user_triggers(connection, state.table)
    assert [(one.name, one.table) for one in found] == [
        ("of_all", '"public"."segments"'),
        ("of_one", '"public"."middle_odd"'),
    ]


def test_our_trigger_is_missed_in_any_partition_and_mended(database, migration):
    divide(database)
    fill(migration)
    assert read_status(migration).warnings == ()
    execute(database, 'ALTER TABLE middle_odd DISABLE TRIGGER "~segments_embedding_stale"')
    (warning,) = read_status(migration).warnings
    assert "not active in middle_odd" in warning
    expand(migration, ENCODER.space)
    assert read_status(migration).warnings == ()


def test_ids_are_compared_once_and_rows_not_counted_for_an_index_that_is_there(database, migration):
    divide(database, "time")
    compared, counted = "HAVING count(*) > 1", 'SELECT count(*) FROM "public"."month_'
    first = statements_run_by(lambda: fill_and_swap(migration))
    rollback(migration)
    again = statements_run_by(lambda: fill_and_swap(migration))
    assert [any(compared in statement for statement in run) for run in (first, again)] == [True, False]
    assert [any(statement.startswith(counted) for statement in run) for run in (first, again)] == [True, False]


def test_our_trigger_is_mended_within_one_wait_for_all_partitions(database, migration, monkeypatch):
    divide(database)
    fill_and_swap(migration)
    execute(database, 'ALTER TABLE middle_odd DISABLE TRIGGER "~segments_embedding_stale"')
    locked = []

    def lock(connection, target, mode):
        locked.append(mode)
        lock_table(connection, target, mode)

    monkeypatch.setattr(exchange, "lock_table", lock)
    expand(migration, ENCODER.space)
    expand(migration, ENCODER.space)
    assert locked == ["ACCESS EXCLUSIVE"]


def test_replica_identity_is_that_of_the_partitions(database, migration):
    divide(database, "hash")
    execute(database, "CREATE PUBLICATION one FOR TABLE segments")
    execute(database, "CREATE PUBLICATION through_root FOR TABLE segments WITH (publish_via_partition_root)")
    execute(database, "CREATE PUBLICATION of_one FOR TABLE part_2")
    execute(database, "ALTER TABLE part_1 REPLICA IDENTITY NOTHING")
    state = require_table(migration)
    with database.autocommit() as connection:
        found = find_replication(connection, state.table)
        fault, remedy = updates_fault(connection, state.table, found)
        told = told_replication(found, state, "embedding_384", VectorType("vector", 384))
    assert [publication.name for publication in found.publications] == ["of_one", "one", "through_root"]
    assert ["rows are sent as those of each partition" in words for words in told] == [True, True, False]
    assert '"public"."part_1" has no replica identity' in fault
    execute(database, remedy)
    fill_and_swap(migration)
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_one_wait_is_for_the_locks_of_all_partitions(database):
    divide(database)
    with application(database) as reader:
        reader.exec_driver_sql("SELECT FROM middle_odd")
        with database.transaction() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '250ms'")
            with pytest.raises(DBAPIError, match="lock timeout"):
                lock_table(connection, SEGMENTS, "ACCESS EXCLUSIVE")
    with database.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
        lock_table(connection, SEGMENTS, "SHARE ROW EXCLUSIVE")
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "2s"
        held = connection.exec_driver_sql(
            "SELECT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'ShareRowExclusiveLock'"
        ).scalars()
        assert sorted(held) == ["low", "middle", "middle_even", "middle_odd", "segments", "the_rest"]


def test_somebodys_own_storage_parameter_is_left_as_it_is(database, migration):
    divide(database)
    execute(database, "ALTER TABLE low SET (toast_tuple_target = 2000)")
    expand(migration, ENCODER.space)
    found = dict(
        tuple(row)
        for row in execute(database, "SELECT relname::text, reloptions::text FROM pg_class WHERE relkind = 'r'")
    )
    assert (found["low"], found["middle_odd"]) == ("{toast_tuple_target=2000}", "{toast_tuple_target=1500}")
    assert scalar(database, "SELECT reloptions FROM pg_class WHERE relname = 'segments'") is None
