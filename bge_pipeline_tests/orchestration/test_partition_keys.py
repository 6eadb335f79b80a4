"""Keys of partitions that a person can read in a list, and that mean the same ids as long as they are there."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.partitions import add, known_keys, new_full_ranges, range_of, recut
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector


def test_uuids_are_short_and_mean_whole_ones(
    database: Database, migration: Migration, instance: dg.DagsterInstance, run: Runner
):
    execute(database, "ALTER TABLE segments DROP COLUMN id CASCADE")
    execute(database, "ALTER TABLE segments ADD COLUMN id uuid PRIMARY KEY DEFAULT gen_random_uuid()")

    assert run("expand_job").success

    keys = known_keys(instance, THE_TABLE)
    assert [len(key) for key in keys] == [len("01~00000000~ffffffff~01234567")] * 3
    ranges = [range_of(instance, key) for key in keys]
    assert [r.lower for r in ranges[1:]] == [r.upper for r in ranges[:-1]]
    for key, r in zip(keys, ranges, strict=True):
        assert key.split("~")[1:3] == [str(r.lower)[:8], str(r.upper)[:8]]
        assert run("backfill_job", key).success
    (left,) = execute(database, "SELECT count(*) FROM segments WHERE embedding_384 IS NULL")
    assert left[0] == 0
    assert recut(instance, THE_TABLE, migration) == keys


def test_new_partitions_have_as_many_digits_as_those_that_are_there(
    database: Database, migration: Migration, instance: dg.DagsterInstance, run: Runner
):
    assert run("expand_job").success
    assert known_keys(instance, THE_TABLE) == KEYS
    execute(
        database,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text) "
        "SELECT n, source_id, video_id, n, n + 1, text FROM generate_series(301, 501) n, "
        "(SELECT * FROM segments ORDER BY id LIMIT 1) s",
    )

    grown = new_full_ranges(instance, THE_TABLE, migration)

    assert grown == ["04_301-400", "05_401-500"]
    earlier = "00006_501_601"
    add(instance, THE_TABLE, [earlier])
    assert str(range_of(instance, earlier)) == "[501, 601)"
