"""People see what both columns find before they let the swap happen."""

import dagster as dg
import pytest

from bge_pipeline.definitions import defs
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, checks_of

pytestmark = pytest.mark.pgvector


def test_the_swaps_checks_show_both_columns_with_texts(run: Runner):
    run("expand_job")
    run.backfill()

    result = run("swap_job")

    (found,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "side_by_side"]
    assert found.passed
    assert "results stayed over 10 questions" in str(found.description)
    page = str(found.metadata["side_by_side"].value)
    assert page.count("| rank | old | went to | new | came from |") == 10


def test_a_partition_that_is_not_the_last_shows_nothing(instance: dg.DagsterInstance, run: Runner):
    run("expand_job")
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey("backfilled_embeddings")}, asset_check_selection=None
    )

    first = job.execute_in_process(instance=instance, partition_key=KEYS[0])
    run.backfill(KEYS[1], KEYS[1])
    last = job.execute_in_process(instance=instance, partition_key=KEYS[2])

    assert "side_by_side" not in checks_of(instance, first.run_id)
    assert "side_by_side" in checks_of(instance, last.run_id)
