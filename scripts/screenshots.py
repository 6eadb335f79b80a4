"""Take the README's pictures: the assets of a migrated demo table, and its benchmark report, in the Dagster UI.

Run: python -m scripts.screenshots                  (needs Chromium, Playwright and the extra `embedded`; minutes)
     python -m scripts.screenshots --rows 600 --output /tmp/pictures
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from bge_pipeline.demo.home import demo_settings
from bge_pipeline.old_spellings import OLD_NAMES
from bge_pipeline.settings import Settings
from bge_pipeline_tests.ui.dagster_ui import DagsterUI, browser_page, chromium, running_ui

_SHARPNESS = 2
_PARTITIONS = 4
_COLORS = 256


def migrate_demo_table(home: str, rows: int) -> None:
    """The demo, through Dagster, so that the UI has a history to show."""
    variables = {"BGE_PIPELINE_HOME": home, "PARTITION_ROWS": str(partition_rows(rows))}
    command = [sys.executable, "-m", "bge_pipeline", "demo", "--rows", str(rows)]
    subprocess.run(command, env=os.environ | variables, cwd=home, check=True)


def partition_rows(rows: int) -> int:
    """Rows of a partition, so that there are some to see."""
    return -(-rows // _PARTITIONS)


def take_pictures(ui: DagsterUI, folder: Path) -> list[Path]:
    """The graph of the assets and the upper part of the report."""
    page = ui.page
    page.set_viewport_size({"width": 1_360, "height": 470})
    ui.open_lineage()
    page.get_by_role("button", name="Hide navigation").click()
    expect(page.get_by_text("Passed")).to_have_count(2)
    graph = _save(page, folder / "dagster-assets.png")

    page.set_viewport_size({"width": 1_360, "height": 960})
    report = ui.open_markdown("benchmark_report", "report")
    report.get_by_role("heading").first.scroll_into_view_if_needed()
    return [graph, _save(page, folder / "dagster-report.png")]


def _save(page: Page, path: Path) -> Path:
    """A picture without what moves, in the few colours that a UI has, which makes it a fraction as large."""
    page.evaluate("document.fonts.ready")
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    picture.convert("RGB").quantize(_COLORS, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    return path


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
        migrate_demo_table(home, arguments.rows)
        settings = demo_settings(
            {"_env_file": None, "bge_pipeline_home": home, "partition_rows": partition_rows(arguments.rows)}
        )
        with (
            running_ui(settings, settings.home) as url,
            browser_page(browser, sharpness=_SHARPNESS) as page,
        ):
            for path in take_pictures(DagsterUI(page, url), arguments.output):
                print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
