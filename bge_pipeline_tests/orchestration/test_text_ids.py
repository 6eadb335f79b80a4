"""Partitions of a table whose ids are texts: keys that sort and can be read, and nothing that Dagster stumbles over."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.in_process import migrate_through_dagster
from bge_pipeline.orchestration.partitions import known_keys, range_of, recut, targeted_range
from bge_pipeline.orchestration.sensors import embed_new_rows
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import Runner
from bge_pipeline_tests.support import ENCODER, execute, give_text_ids, wrong_vectors

pytestmark = pytest.mark.pgvector


@pytest.fixture
def text_ids(database: Database) -> Database:
    """The demo table with ids of every sort."""
    give_text_ids(database, 'varchar COLLATE "C"')
    return database


@pytest.mark.thorough
def test_a_whole_migration_by_partitions(text_ids: Database, settings: Settings):
    migration = migrate_through_dagster(settings)

    assert migration.partitions == 3
    status = read_status(Migration(text_ids, settings))
    assert (status.phase, status.pending) == ("swapped", 0)
    assert wrong_vectors(text_ids, ENCODER, "embedding") == []
    with dg.DagsterInstance.get() as instance:
        keys = known_keys(instance, THE_TABLE)
        assert keys == sorted(keys)
        assert keys[0].startswith("01~~doc_")
        assert instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")) == set(keys)


def test_long_ids_have_short_keys_that_still_mean_the_same_rows(
    text_ids: Database, settings: Settings, instance: dg.DagsterInstance, run: Runner
):
    execute(text_ids, "UPDATE segments SET id = repeat('本/', 150) || lpad(id, 350, 'z')")
    assert run("expand_job").success
    keys = known_keys(instance, THE_TABLE)

    assert [len(key) <= 100 for key in keys] == [True] * 3
    assert keys[2].startswith("03~本%2F本%2F")
    ranges = [range_of(instance, key) for key in keys]
    assert [r.lower for r in ranges] == [None, ranges[0].upper, ranges[1].upper]
    assert run("backfill_job", keys[0]).success
    assert run.backfill(keys[1], keys[2]).success
    tags = {"dagster/asset_partition_range_start": keys[1], "dagster/asset_partition_range_end": keys[2]}
    whole = targeted_range(instance, THE_TABLE, tags)
    assert whole is not None
    assert (whole.lower, whole.upper) == (ranges[1].lower, ranges[2].upper)
    assert read_status(Migration(text_ids, settings)).pending == 0
    assert recut(instance, THE_TABLE, Migration(text_ids, settings)) == keys


def test_what_the_table_has_grown_by_becomes_partitions_with_the_next_numbers(
    text_ids: Database, settings: Settings, instance: dg.DagsterInstance, run: Runner
):
    run("expand_job")
    first, last = known_keys(instance, THE_TABLE)[0], known_keys(instance, THE_TABLE)[-1]
    assert run.backfill(first, last).success
    execute(
        text_ids,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text) SELECT '🙂🙂' || lpad(n::text, 3, '0'), "
        "source_id, video_id, n + 1000000, n + 1000001, text FROM segments, generate_series(1, 250) n "
        "WHERE id = 'it''s'".replace("::", "\\:\\:"),
    )

    with dg.build_sensor_context(instance) as context:
        result = embed_new_rows.of(THE_TABLE)(context)

    assert isinstance(result, dg.SensorResult)
    assert result.dynamic_partitions_requests is not None
    assert list(result.dynamic_partitions_requests[0].partition_keys) == [
        "04~🙂~🙂🙂100".replace("🙂", "%F0%9F%99%82"),
        "05~🙂🙂100~🙂🙂200".replace("🙂", "%F0%9F%99%82"),
    ]
