"""The Dagster UI as a process of its own, and a person in front of it: for the UI's test and scripts/screenshots.py."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Locator, Page, ViewportSize, expect, sync_playwright

from bge_pipeline.orchestration.dagster_home import environment
from bge_pipeline.orchestration.names import GROUP
from bge_pipeline.settings import Settings

PATIENCE_SECONDS = 480
"""Longest wait for anything: a run takes seconds, but begins with the daemon's tick and an interpreter, and the machine
may be busy."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_BROWSER_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Of a desktop's width; a narrow one hides parts of the UI behind menus.
_VIEWPORT: ViewportSize = {"width": 1_400, "height": 900}


def chromium() -> str | None:
    """Path of the browser, None where there is none."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def running_ui(settings: Settings, folder: Path) -> Iterator[str]:
    """`bge-pipeline dev` on a free port, stopped by SIGINT at the end.

    Args:
        settings: reach the UI through its environment, on top of this process's.
        folder: where it runs, without a `.env` of somebody's, and where its output goes.

    Yields:
        The URL of the UI, which answers.

    Raises:
        RuntimeError: it does not start, or does not end in order.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bge_pipeline", "dev", "--port", str(port)]
    log = folder / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment(settings), cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_it_answers(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(timeout=PATIENCE_SECONDS)
    if status != 0:
        raise RuntimeError(f"expected the UI to end with status 0, got {status}: {_end_of(log)}")


@contextmanager
def browser_page(executable: str, *, sharpness: float = 1) -> Iterator[Page]:
    """A page in a browser of its own; `sharpness` is how many pixels of a picture one pixel of the page becomes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_BROWSER_ARGUMENTS)
        try:
            page = browser.new_page(viewport=_VIEWPORT, device_scale_factor=sharpness)
            page.set_default_timeout(1_000 * PATIENCE_SECONDS)
            expect.set_options(timeout=1_000 * PATIENCE_SECONDS)
            yield page
        finally:
            browser.close()


class DagsterUI:
    """What a person does in the UI, and what they wait for before they do the next thing."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url

    def open_asset(self, asset: str, view: str = "overview") -> None:
        """Go to a tab of the asset's page."""
        self.page.goto(f"{self._url}/assets/{asset}?view={view}", wait_until="domcontentloaded")
        expect(self._materialize_button()).to_be_enabled()

    def open_start_page(self, log: Path) -> None:
        """Follow the link that `dev` printed when it started, to the assets."""
        (link,) = re.findall(r"^Dagster UI: (\S+)", log.read_text(), re.MULTILINE)
        self.page.goto(link, wait_until="domcontentloaded")
        expect(self.page.get_by_text("schema_with_384_column", exact=True).first).to_be_visible()

    def failed_checks(self, asset: str) -> Locator:
        """The mark of failed checks on the asset in the open graph."""
        return self.page.locator(f"a[href='/assets/{asset}?view=checks']").get_by_role("img", name="close")

    def open_link(self, asset: str, name: str) -> Page:
        """The page behind a link in the metadata of the asset's latest materialization."""
        self.open_asset(asset)
        row = self.page.get_by_role("row").filter(has=self.page.get_by_text(name, exact=True))
        with self.page.context.expect_page() as opened:
            row.get_by_role("link").first.click()
        opened.value.set_default_timeout(1_000 * PATIENCE_SECONDS)
        return opened.value

    def open_check(self, asset: str, check: str) -> Page:
        """Go to a check of the asset."""
        self.page.goto(f"{self._url}/assets/{asset}?view=checks&checkDetail={check}", wait_until="domcontentloaded")
        return self.page

    def open_lineage(self) -> None:
        """Go to the graph of the assets, and wait until each one says how it is."""
        path = f"locations/bge_pipeline.definitions/asset-groups/{GROUP}/lineage"
        self.page.goto(f"{self._url}/{path}", wait_until="domcontentloaded")
        nodes = self.page.get_by_text("Latest event", exact=True)
        expect(nodes).to_have_count(4)
        expect(self.page.get_by_text("Loading...", exact=False)).to_have_count(0)

    def materialize(self, asset: str) -> None:
        """Materialize an asset without partitions for the first time, and wait until its status is green."""
        self.open_asset(asset)
        expect(self.page.get_by_text(re.compile("^(Never materialized|Failed in)")).first).to_be_visible()
        self._materialize_button().click()
        status = self.page.get_by_text("Latest materialization", exact=True).locator("xpath=..")
        expect(status.get_by_role("img", name="run_success")).to_be_visible()

    def materialize_in_vain(self, asset: str) -> Locator:
        """Materialize an asset whose run fails; the log that says why."""
        self.open_asset(asset, "events")
        self._materialize_button().click()
        expect(self.page.get_by_text("failed, and did not materialize this asset")).to_be_visible()
        return self._open_logs()

    def materialize_with(self, asset: str, config: str) -> None:
        """Materialize an asset from its launchpad, with settings for this one run."""
        self.open_asset(asset)
        self._materialize_button().locator("xpath=following::button[1]").click()
        self.page.get_by_text("Open launchpad", exact=True).click()
        dialog = self.page.get_by_role("dialog").filter(has_text="Launchpad")
        dialog.get_by_text("resources:").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(config)
        dialog.get_by_role("button", name="Materialize").click()
        expect(dialog).to_be_hidden()

    def choose_partitions(
        self, asset: str, which: Literal["All", "Failed", "Missing", "Failed and missing"]
    ) -> Locator:
        """Open the dialog that launches a backfill, from the asset's list of partitions, and choose some."""
        self.open_asset(asset, "partitions")
        self._materialize_button().click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(which, exact=True).click()
        return dialog

    def launch_backfill(self, asset: str, which: Literal["All", "Failed", "Missing", "Failed and missing"]) -> None:
        """Launch a backfill of an asset's partitions from its list of partitions, which stays open."""
        self.launch_chosen(self.choose_partitions(asset, which))

    def launch_chosen(self, dialog: Locator) -> None:
        """Launch the backfill of the open dialog, or the run, where it is of one partition."""
        dialog.get_by_role("button", name=re.compile(r"^Launch (backfill|1 run)$")).click()
        expect(dialog).to_be_hidden()

    def open_runs(self) -> None:
        """Go to the list of runs, those within backfills too."""
        self.page.goto(f"{self._url}/runs?view=runs", wait_until="domcontentloaded")
        expect(self.page.locator("a[href^='/runs/']").first).to_be_visible()

    def open_run_in_progress(self) -> None:
        """Go to the page of the one run that has started."""
        self.page.goto(f"{self._url}/runs?view=runs&q%5B%5D=status%3ASTARTED", wait_until="domcontentloaded")
        self.page.locator("a[href^='/runs/']:not([href^='/runs/b/'])").first.click()
        expect(self.page.get_by_role("button", name="Terminate")).to_be_visible()

    def terminate(self) -> None:
        """Stop the run of the open page, and wait until it has ended."""
        self.page.get_by_role("button", name="Terminate").click()
        self.page.get_by_role("dialog").get_by_role("button", name=re.compile("^Terminate")).click()
        self.wait_for_run("Canceled")

    def wait_for_run(self, status: str) -> None:
        """Wait until the run of the open page has that status."""
        expect(self.page.get_by_text(status, exact=True).first).to_be_visible()

    def type_confirmation(self, job: str, confirmation: str) -> None:
        """Open a job's launchpad and type what it wants to be confirmed by."""
        self.page.goto(f"{self._url}/locations/bge_pipeline.definitions/jobs/{job}/playground")
        self.page.get_by_text("confirm:", exact=False).first.click()
        self.page.keyboard.press("End")
        self.page.keyboard.press("ArrowLeft")
        self.page.keyboard.insert_text(confirmation)

    def launch(self) -> None:
        """Launch the run of the open launchpad, and wait until it has done its work."""
        self.page.get_by_role("button", name="Launch Run").click()
        self.wait_for_run("Success")

    def wait_for_partitions(self, *, materialized: int, failed: int = 0) -> None:
        """Wait until the open list of partitions counts so many of each."""
        for found in (f"Materialized ({materialized})", f"Failed ({failed})"):
            expect(self.page.get_by_text(found, exact=True)).to_be_visible()

    def open_log_of_partition(self, asset: str, key: str) -> Locator:
        """The log of the run that failed to materialize a partition."""
        self.page.goto(f"{self._url}/assets/{asset}?view=partitions&partition={key}", wait_until="domcontentloaded")
        return self._open_logs()

    def open_markdown(self, asset: str, name: str) -> Locator:
        """Markdown in the metadata of the asset's latest materialization."""
        self.open_asset(asset)
        row = self.page.get_by_role("row").filter(has=self.page.get_by_text(name, exact=True))
        row.get_by_text("[Show Markdown]").click()
        dialog = self.page.get_by_role("dialog")
        expect(dialog.get_by_role("heading").first).to_be_visible()
        return dialog

    def _open_logs(self) -> Locator:
        self.page.get_by_role("button", name="View logs").click()
        return self.page.get_by_role("dialog")

    def _materialize_button(self) -> Locator:
        # With partitions there is an ellipsis behind the word.
        return self.page.get_by_role("button", name=re.compile("materialization Materialize"))


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"expected the UI at {url}, got no answer: {_end_of(log)}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/server_info", timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_of(log: Path) -> str:
    return log.read_text()[-2_000:]
