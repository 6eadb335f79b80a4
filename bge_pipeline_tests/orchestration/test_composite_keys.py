"""Partitions of tables whose key has several columns: keys that sort, can be read and mean the same rows for ever."""

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
from bge_pipeline_tests.support import ENCODER, execute, give_composite_key, wrong_vectors

pytestmark = pytest.mark.pgvector

TENANTS = "tenant_id,doc_id"
CHUNKS = "document_id,chunk_no"


@pytest.fixture
def keyed(database: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The demo table with the key that the test asks for."""
    give_composite_key(database, request.param)
    monkeypatch.setenv("TARGET_ID_COLUMN", request.param)
    return database


@pytest.fixture
def settings(keyed: Database, settings: Settings) -> Settings:
    """As a deployment for such a table has them."""
    return settings


@pytest.mark.thorough
@pytest.mark.parametrize("keyed", [CHUNKS, TENANTS], indirect=True)
def test_a_whole_migration_by_partitions(keyed: Database, settings: Settings):
    migration = migrate_through_dagster(settings)

    assert migration.partitions == 3
    status = read_status(Migration(keyed, settings))
    assert (status.phase, status.pending) == ("swapped", 0)
    assert wrong_vectors(keyed, ENCODER, "embedding", key="ctid") == []
    with dg.DagsterInstance.get() as instance:
        keys = known_keys(instance, THE_TABLE)
        assert keys == sorted(keys)
        assert instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")) == set(keys)


@pytest.mark.parametrize("keyed", [TENANTS], indirect=True)
def test_keys_of_tenants_are_short_and_still_mean_the_same_rows(
    keyed: Database, settings: Settings, instance: dg.DagsterInstance, run: Runner
):
    assert run("expand_job").success
    keys = known_keys(instance, THE_TABLE)

    ranges = [range_of(instance, key) for key in keys]
    assert [r.lower for r in ranges] == [None, ranges[0].upper, ranges[1].upper]
    ((tenant, doc),) = execute(keyed, "SELECT tenant_id, doc_id FROM segments ORDER BY 1, 2 OFFSET 99 LIMIT 1")
    tenant = str(tenant)
    assert ranges[0].upper == (tenant, str(doc))
    assert keys[0].startswith(f"01~~{tenant[:8]}_{doc}~")
    assert keys[1].startswith(f"02~{tenant[:8]}_{doc}~")
    assert run("backfill_job", keys[0]).success
    assert run.backfill(keys[1], keys[2]).success
    tags = {"dagster/asset_partition_range_start": keys[1], "dagster/asset_partition_range_end": keys[2]}
    whole = targeted_range(instance, THE_TABLE, tags)
    assert whole is not None
    assert (whole.lower, whole.upper) == (ranges[1].lower, ranges[2].upper)
    assert read_status(Migration(keyed, settings)).pending == 0
    assert recut(instance, THE_TABLE, Migration(keyed, settings)) == keys


@pytest.mark.parametrize("keyed", [CHUNKS], indirect=True)
def test_what_the_table_has_grown_by_becomes_partitions_with_the_next_numbers(
    keyed: Database, instance: dg.DagsterInstance, run: Runner
):
    execute(keyed, "UPDATE segments SET document_id = 'doc ' || md5(document_id)")
    run("expand_job")
    first, last = known_keys(instance, THE_TABLE)[0], known_keys(instance, THE_TABLE)[-1]
    assert first.startswith("01~~~doc%20")
    assert run.backfill(first, last).success
    execute(
        keyed,
        "INSERT INTO segments (document_id, chunk_no, source_id, video_id, start_sec, end_sec, text) "
        "SELECT 'é/' || n / 100, n % 100, source_id, video_id, n + 1000000, n + 1000001, text "
        "FROM (SELECT * FROM segments LIMIT 1) one, generate_series(0, 249) n",
    )

    with dg.build_sensor_context(instance) as context:
        result = embed_new_rows.of(THE_TABLE)(context)

    assert isinstance(result, dg.SensorResult)
    assert result.dynamic_partitions_requests is not None
    _, upper = last.split("~~")
    assert list(result.dynamic_partitions_requests[0].partition_keys) == [
        f"04~{upper}~~é%2F0~99",
        "05~é%2F0~99~~é%2F1~99",
    ]
