"""Candidates for the next model are compared in the UI, where somebody names them in the launchpad."""

import dagster as dg
import pytest

from bge_pipeline.definitions import defs
from bge_pipeline_tests.support import schema_of

pytestmark = pytest.mark.pgvector


def compare(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("model_comparison")})
    config = {"ops": {"model_comparison": {"config": {"models": ["hashing", "/no/such/model"]}}}}
    return job.execute_in_process(instance=instance, run_config=config)


def test_the_leaderboard_is_metadata_of_the_asset_and_the_table_stays_as_it_is(database, instance):
    before = schema_of(database)

    result = compare(instance)

    (event,) = result.asset_materializations_for_node("model_comparison")
    assert "MRR of known items" in event.metadata["leaderboard"].value
    assert event.metadata["not_measured"].value.keys() == {"/no/such/model"}
    assert schema_of(database) == before


def test_the_leaderboard_is_kept_where_no_page_can_be_written(settings, database, instance):
    (settings.home / "reports").parent.mkdir(parents=True, exist_ok=True)
    (settings.home / "reports").write_text("a file, where the folder of the pages should be")

    result = compare(instance)

    assert result.success
    (event,) = result.asset_materializations_for_node("model_comparison")
    assert "MRR of known items" in event.metadata["leaderboard"].value
    assert "page" not in event.metadata


def test_it_is_no_part_of_the_migration():
    graph = defs.resolve_asset_graph()
    node = graph.get(dg.AssetKey("model_comparison"))
    assert node.group_name == "model_choice"
    assert not node.parent_keys
    assert not node.child_keys
