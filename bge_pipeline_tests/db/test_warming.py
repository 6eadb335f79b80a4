"""The new index is read into memory before it serves searches, by whatever operator it answers."""

from __future__ import annotations

import logging

import pytest

from bge_pipeline.database import warming
from bge_pipeline.database.warming import warm
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.vector_index import build_index
from bge_pipeline_tests.support import ENCODER, application, execute, fill, scalar

pytestmark = pytest.mark.pgvector


@pytest.mark.parametrize(
    ("operator_class", "condition"),
    [("vector_cosine_ops", None), ("vector_l2_ops", None), ("vector_ip_ops", None), ("vector_l2_ops", "id > 100")],
)
def test_every_search_goes_by_the_index(database, make_settings, operator_class, condition):
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, f"CREATE INDEX ON segments USING ivfflat (embedding {operator_class}) WITH (lists = 3)")
    migration = Migration(database, make_settings(target_where=condition))
    fill(migration)
    index, plan = build_index(migration)

    def scans():
        execute(database, "SELECT pg_stat_force_next_flush()")
        return scalar(database, f"SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{index.name}'")

    before = scans()

    warm(database, migration.target, migration.target.column_for(ENCODER.space.dimensions), index.name, plan)

    with database.autocommit() as connection:  # the session that searched tells of it when it is used again
        connection.exec_driver_sql("SELECT 1")
    assert scans() - before == 20


def test_a_search_that_takes_too_long_is_given_up_and_told(database, migration, monkeypatch, caplog):
    fill(migration)
    index, plan = build_index(migration)
    monkeypatch.setattr(warming, "_LONGEST_SEARCH_MS", 100)

    with (
        application(database) as connection,
        connection.begin(),
        caplog.at_level(logging.INFO, logger="bge_pipeline"),
    ):
        connection.exec_driver_sql("LOCK TABLE segments")
        warm(database, migration.target, migration.target.column_for(ENCODER.space.dimensions), index.name, plan)

    assert f"index {index.name} was not warmed: canceling statement due to statement timeout" in caplog.text
