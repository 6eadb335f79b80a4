"""What `dev` tells of the address that it listens on."""

import socket
import sys
from pathlib import Path

import pytest

from bge_pipeline.orchestration.dev_server import run_dev
from bge_pipeline.orchestration.report_server import browser_url
from bge_pipeline.settings import Settings


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "[::1]"),
        ("search.host", "search.host"),
    ],
)
def test_a_browser_is_led_to_where_it_finds_the_server(host: str, shown: str):
    assert browser_url(host, 3000) == f"http://{shown}:3000"


@pytest.mark.pgvector
def test_the_printed_link_and_the_one_for_slack_lead_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    in_dagsters_place = tmp_path / "program"
    in_dagsters_place.write_text('#!/bin/sh\necho "for Slack: $DAGSTER_URL"\n')
    in_dagsters_place.chmod(0o755)
    with socket.create_server(("0.0.0.0", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(sys, "executable", str(in_dagsters_place))

    assert run_dev(settings, port=port, host="0.0.0.0") == 0

    said = capfd.readouterr().out
    assert f"Dagster UI: http://127.0.0.1:{port}/" in said
    assert f"for Slack: http://127.0.0.1:{port}\n" in said
