"""The Dagster UI on the test's database, in a browser."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bge_pipeline.settings import Settings

pytest.importorskip("playwright", reason="needs Playwright: pip install playwright")
from bge_pipeline_tests.ui.dagster_ui import DagsterUI, browser_page, chromium, running_ui


@pytest.fixture
def own_home(run_folder: Path) -> Path:
    """A data folder outside pytest's own, whose rights another run of pytest would take away from the embedded server."""
    return run_folder / uuid.uuid4().hex[:8]


@pytest.fixture
def ui(settings: Settings, tmp_path: Path) -> Iterator[DagsterUI]:
    """The UI on the test database, in a browser; neither leaves a process behind."""
    browser = chromium()
    assert browser is not None
    with (
        running_ui(settings, tmp_path) as url,
        browser_page(browser) as page,
    ):
        yield DagsterUI(page, url)
    _, left = psutil.wait_procs(processes_of(settings.home), timeout=60)
    assert [process.cmdline() for process in left] == []


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that were started with this data folder, the embedded PostgreSQL among them."""
    return [process for process in psutil.process_iter() if _mentions(process, str(home))]


def _mentions(process: psutil.Process, home: str) -> bool:
    try:
        # PostgreSQL writes its title over its environment, but names its folder in its command line.
        return process.environ().get("BGE_PIPELINE_HOME") == home or any(home in part for part in process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
