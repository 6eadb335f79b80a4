"""Take the pictures of README and docs/pictures.md: a migration of the demo's table by clicks, with all that may come between.

Run: python -m scripts.screenshots                  (needs Chromium and Playwright; minutes)
     python -m scripts.screenshots --rows 600 --output /tmp/pictures
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from bge_pipeline.demo.home import demo_settings
from bge_pipeline.demo.mark import claim_schema
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.old_spellings import OLD_NAMES
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.ui.dagster_ui import DagsterUI, browser_page, chromium, running_ui
from bge_pipeline_tests.ui.walk import STATIONS, Walk

_SHARPNESS = 2
_PARTITIONS = 4
_COLORS = 256
_BATCH_ROWS = 32
"""Of which a partition has many, so that a run is met in the middle of one."""
_WIDTH = 1_360
_GRAPHS = ("fresh", "swapped", "rolled-back", "retired")
_HEIGHTS = dict.fromkeys(_GRAPHS, 470) | {"report": 960}
"""The other pages have room for a log."""
_HEIGHT = 760


def picture_of(station: str) -> str:
    """The file of a station of the walk."""
    return f"dagster-{station}.png"


def take_pictures(home: Path, rows: int, browser: str, output: Path) -> None:
    """Make the demo's table on a server of its own below `home`, walk through its migration, and save what there is to see."""
    chosen = {"partition_rows": -(-rows // _PARTITIONS), "backfill_batch_rows": _BATCH_ROWS}
    settings = demo_settings({"_env_file": None, "bge_pipeline_home": home} | chosen)
    with Migration.opened(settings) as migration:
        with migration.database.transaction() as connection:
            claim_schema(connection, settings.target_schema)
        create_demo_table(migration.database, settings, rows)
        with running_ui(settings, settings.home) as url, browser_page(browser, sharpness=_SHARPNESS) as page:
            ui = DagsterUI(page, url)
            ui.open_lineage()
            page.get_by_role("button", name="Hide navigation").click()
            walk = Walk(ui, migration, lambda station: _save(page, station, output))
            walk.begin()
            walk.backfill(partitions=_PARTITIONS)
            walk.swap()
            walk.report()
            walk.roll_back()
            walk.go_forward()
            walk.retire()


def _save(page: Page, station: str, folder: Path) -> None:
    """A picture without what moves, in the few colours that a UI has, which makes it a fraction as large."""
    before = page.viewport_size
    page.set_viewport_size({"width": _WIDTH, "height": _HEIGHTS.get(station, _HEIGHT)})
    if station in _GRAPHS:  # fitted into a page as it is opened
        page.reload(wait_until="domcontentloaded")
        expect(page.get_by_text("Latest event", exact=True)).to_have_count(4)
        expect(page.get_by_text("Loading", exact=False)).to_have_count(0)
    if station == "report":
        page.get_by_role("dialog").get_by_role("heading").first.scroll_into_view_if_needed()
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(1_500)
    path = folder / picture_of(station)
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    picture.convert("RGB").quantize(_COLORS, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB", flush=True)
    if before is not None:
        page.set_viewport_size(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6_700, help="rows of the demo table; nearly the whole corpus")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    arguments = parser.parse_args()
    browser = chromium()
    if browser is None:
        parser.error("needs Chromium: apt-get install chromium")
    # Pictures of the demo alone, whatever database this shell works on.
    for name in (*Settings.model_fields, *OLD_NAMES):
        os.environ.pop(name.upper(), None)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bge-pipeline-screenshots-") as home:
        take_pictures(Path(home), arguments.rows, browser, arguments.output)
    assert all((arguments.output / picture_of(station)).exists() for station in STATIONS)


if __name__ == "__main__":
    main()
