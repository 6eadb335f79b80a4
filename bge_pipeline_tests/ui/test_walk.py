"""A whole migration by clicks with a kill, a stop, a refused swap, a way back and the end of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import ENCODER, columns_of, wrong_vectors

pytest.importorskip("playwright", reason="needs Playwright: pip install playwright")
from bge_pipeline_tests.ui.dagster_ui import DagsterUI, chromium
from bge_pipeline_tests.ui.walk import STATIONS, Walk

pytestmark = [
    pytest.mark.browser,
    pytest.mark.pgvector,
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.timeout(3_000),
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture
def settings(make_settings: Callable[..., Settings], own_home: Path) -> Settings:
    """Three partitions that take ten seconds each; what fails is left to the person who clicks."""
    return make_settings(
        bge_pipeline_home=own_home,
        partition_rows=100,
        backfill_batch_rows=10,
        max_rows_per_second=10,
        max_partition_attempts=1,
        benchmark_texts=200,
    )


def test_a_person_comes_through_whatever_meets_them(ui: DagsterUI, migration: Migration):
    seen: list[str] = []
    walk = Walk(ui, migration, seen.append)

    walk.begin()
    assert read_status(migration).phase == "expanded"
    walk.backfill(partitions=3)
    assert read_status(migration).phase == "backfilled"
    walk.swap()
    assert read_status(migration).phase == "swapped"
    walk.report()
    walk.roll_back()
    assert read_status(migration).dimensions == 1536
    walk.go_forward()
    assert read_status(migration).dimensions == 384
    walk.retire()

    status = read_status(migration)
    assert (status.phase, status.embedded, status.pending) == ("retired", 300, 0)
    assert wrong_vectors(migration.database, ENCODER, "embedding") == []
    assert "embedding_1536" not in columns_of(migration.database)
    assert tuple(seen) == STATIONS
