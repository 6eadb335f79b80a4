"""A migration by clicks alone: the Dagster UI in a real browser, from the first asset to the benchmark report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import execute, fill_and_swap

pytest.importorskip("playwright", reason="needs Playwright: pip install playwright")
from playwright.sync_api import Locator, expect

from bge_pipeline_tests.ui.dagster_ui import DagsterUI, chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.pgvector,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium"),
]

FAILING = "02_101-200"
REFUSAL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'segment % is under review', OLD.id; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON segments FOR EACH ROW WHEN (OLD.id > 100) EXECUTE FUNCTION refuse()
"""


@pytest.fixture
def settings(make_settings: Callable[..., Settings], own_home: Path) -> Settings:
    """Three partitions; Dagster's records on an embedded server of its own; failures are left to the person who clicks."""
    return make_settings(bge_pipeline_home=own_home, partition_rows=100, max_partition_attempts=1, benchmark_texts=200)


def test_a_migration_by_clicks_with_a_failed_partition_and_a_report(
    ui: DagsterUI, database: Database, migration: Migration, settings: Settings, tmp_path: Path
):
    ui.open_start_page(tmp_path / "ui.log")
    ui.materialize("schema_with_384_column")
    assert read_status(migration).phase == "expanded"

    execute(database, REFUSAL)
    ui.launch_backfill("backfilled_embeddings", "All")
    ui.wait_for_partitions(materialized=1, failed=2)
    assert read_status(migration).pending == 200

    log = ui.open_log_of_partition("backfilled_embeddings", FAILING)
    expect(log).to_contain_text(re.compile(r"the database refuses the vector: segment \d+ is under review"))
    expect(log).to_contain_text("Next: correct the constraint or the trigger, then run the backfill again; it resumes")

    execute(database, "DROP TRIGGER refuse ON segments")
    ui.launch_backfill("backfilled_embeddings", "Failed")
    ui.wait_for_partitions(materialized=3)
    assert read_status(migration).pending == 0

    ui.materialize("swapped_index")
    status = read_status(migration)
    assert (status.phase, status.dimensions, status.embedded, status.pending) == ("swapped", 384, 300, 0)

    ui.materialize("benchmark_report")
    assert_report_is_readable(ui.open_markdown("benchmark_report", "report"), settings)
    page = ui.open_link("benchmark_report", "report_page")
    expect(page.get_by_role("heading", name="Benchmark of public.segments")).to_be_visible()
    expect(page.get_by_role("heading", name="Side by side")).to_be_visible()
    page.close()


@pytest.mark.thorough
def test_a_rollback_at_the_terminal_turns_the_graph_red_and_says_why(
    ui: DagsterUI, migration: Migration, tmp_path: Path
):
    fill_and_swap(migration)
    rollback(migration)

    ui.open_start_page(tmp_path / "ui.log")

    # The sensor of `dev` notices it; the person only looks.
    expect(ui.failed_checks("swapped_index")).to_be_visible()
    told = ui.open_check("swapped_index", "migration_status")
    expect(told.get_by_text(re.compile("search reads the old vectors again")).first).to_be_visible()


def assert_report_is_readable(page: Locator, settings: Settings):
    (written,) = (settings.home / "reports").glob("*.json")
    report = json.loads(written.read_text())
    assert report["rows"] == 300
    for run in report["encode"]:
        expect(page).to_contain_text(f"{run['texts_per_second']:,.0f}")
    for run in report["search"]:
        expect(page.get_by_role("cell", name=run["name"], exact=True)).to_be_visible()
    pictures = page.locator("img")
    assert pictures.count() >= 3
    for picture in pictures.all():
        assert picture.get_attribute("src").startswith("data:image/svg+xml;base64,")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
