"""A part of a table through Dagster: partitions hold its rows alone, and the swap's asset leaves the columns where they are."""

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.in_process import migrate_through_dagster
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import ENCODER, columns_of, execute, wrong_vectors

pytestmark = pytest.mark.pgvector


@pytest.mark.thorough
def test_a_part_with_a_text_of_several_columns_goes_through_every_asset(database: Database, settings: Settings):
    execute(database, "UPDATE segments SET speaker_label = 'x'")
    part = {"target_where": "id % 3 = 1", "target_text": "text || ''", "partition_rows": 1_000}
    settings = settings.model_copy(update=part)
    migration = migrate_through_dagster(settings)

    assert migration.partitions == 1
    status = read_status(Migration(database, settings))
    assert (status.phase, status.rows, status.embedded, status.warnings) == ("backfilled", 100, 100, ())
    assert columns_of(database)["embedding"] == "vector(1536)"
    assert wrong_vectors(database, ENCODER, "embedding_384") == []
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")) == set(
            known_keys(instance, THE_TABLE)
        )
        event = instance.get_latest_materialization_event(dg.AssetKey("swapped_index"))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["exchanged"].value is False
