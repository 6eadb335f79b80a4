"""A run says how many rows are done, how fast, and how long it takes still, by itself and in all."""

import dagster as dg
import pytest

from bge_pipeline.orchestration.progress import Overall, told_progress
from bge_pipeline.phases.backfill import BackfillProgress
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner


def test_rows_rate_and_time_left_are_told_for_the_partition_and_for_all():
    progress = BackfillProgress(1_000, 5_000, 20.0)

    assert told_progress(progress, Overall(3, 12, 40_000)) == (
        "1,000 of 5,000 rows, 50 rows/s, 1 min left, 3 of 12 partitions done, about 15 min left in all"
    )
    assert told_progress(progress, None) == "1,000 of 5,000 rows, 50 rows/s, 1 min left"


def test_no_time_is_made_up_before_the_first_rows():
    assert told_progress(BackfillProgress(0, 5_000, 3.0, "paused"), Overall(0, 2, 5_000)) == (
        "0 of 5,000 rows, 0 rows/s, 0 of 2 partitions done; held back: paused"
    )


@pytest.mark.pgvector
def test_the_run_bears_its_progress_and_the_partition_what_is_to_come(instance: dg.DagsterInstance, run: Runner):
    run("expand_job")
    run("backfill_job", KEYS[1])

    result = run("backfill_job", KEYS[0])

    (materialization,) = result.asset_materializations_for_node("backfilled_embeddings")
    assert materialization.metadata["partitions_left"].value == 1
    assert materialization.metadata["seconds_left_in_all"].value >= 0
    record = instance.get_run_by_id(result.run_id)
    assert record is not None
    assert "1 of 3 partitions done" in record.tags["progress"]
