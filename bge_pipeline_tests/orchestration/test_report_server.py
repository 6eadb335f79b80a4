"""A link in the UI leads to the report's page: the folder is served beside the UI, and nothing outside it."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from bge_pipeline.orchestration.report_server import serving_reports


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "benchmark-20261127T080000.html").write_text("older")
    (reports / "benchmark-20261128T080000.html").write_text("newer")
    (reports / "notes.txt").write_text("private")
    (tmp_path / "secret").write_text("secret")
    return reports


def status_of(url: str) -> int:
    try:
        with urlopen(url, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def test_a_page_is_found_by_its_name_and_the_newest_without_one(folder: Path):
    with serving_reports(folder, "127.0.0.1", 0) as url:
        assert urlopen(f"{url}/benchmark-20261127T080000.html", timeout=10).read() == b"older"
        assert urlopen(url, timeout=10).read() == b"newer"


@pytest.mark.parametrize(
    "path",
    [
        "/notes.txt",
        "/../secret",
        "/benchmark-/../../secret",
        "/%2e%2e/secret",
        "/benchmark-1.html",
        "/benchmark-%2F..%2Fnotes.txt",
        "/benchmark-%2F../",
        "/benchmark-%2F..%2Fbenchmark-20261127T080000.html",
    ],
)
def test_nothing_else_is_served(folder: Path, path: str):
    with serving_reports(folder, "127.0.0.1", 0) as url:
        assert status_of(url + path) == 404


def test_a_folder_that_is_not_there_yet_says_so(tmp_path: Path):
    with serving_reports(tmp_path / "none", "127.0.0.1", 0) as url:
        assert status_of(url) == 404


def test_a_port_that_is_taken_gives_way_to_another(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving_reports(folder, "127.0.0.1", port) as url:
            assert not url.endswith(f":{port}")
            assert status_of(url) == 200


def test_every_address_is_linked_as_this_machine(folder: Path):
    with serving_reports(folder, "0.0.0.0", 0) as url:
        assert url.startswith("http://127.0.0.1:")
        assert status_of(url) == 200
