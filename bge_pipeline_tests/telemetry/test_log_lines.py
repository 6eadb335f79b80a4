"""With LOG_FORMAT=json every line on standard error is one JSON object, from the first to an error at the end."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.cli.log_output import JsonStream
from bge_pipeline.settings import TelemetrySettings
from bge_pipeline.settings.configuration import read_early
from bge_pipeline.telemetry.log_lines import JsonLines, masked
from bge_pipeline_tests.support import execute

HARMLESS = st.text("abc xyz,.:-_0123456789()é\n", max_size=60)


def lines_of(printed):
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.pgvector
class TestTheCommand:
    def test_a_backfill_logs_objects_and_no_bar(self, slow, start):
        execute(slow, "DROP TRIGGER dawdle ON segments")
        printed, said = start("backfill", "--json", LOG_FORMAT="json", FORCE_COLOR="1").communicate(timeout=60)
        assert json.loads(printed)["rows"] == 300
        lines = lines_of(said)
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        assert any("300 of 300 rows" in line["message"] for line in lines)
        assert {line["level"] for line in lines} <= {"INFO", "WARNING"}
        assert "\x1b" not in said

    def test_an_error_is_an_object_too_without_its_password(self, start):
        _, said = start(
            "-v", "status", LOG_FORMAT="json", DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/x?sslpassword=hunter3"
        ).communicate(timeout=60)
        lines = lines_of(said)
        assert lines[-1]["level"] == "ERROR"
        assert lines[-1]["message"].startswith("error: cannot reach")
        assert "Next:" in lines[-1]["message"]
        assert "hunter" not in said

    def test_wrong_usage_of_a_command_is_an_object_too(self, start):
        _, said = start("status", "--nonsense", LOG_FORMAT="json").communicate(timeout=60)
        assert "No such option" in lines_of(said)[-1]["message"]

    def test_a_bad_value_is_refused_as_every_other(self, start):
        process = start("status", LOG_FORMAT="xml")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "LOG_FORMAT: Input should be 'text' or 'json'" in said


def test_the_format_is_known_before_the_other_settings_are_read(monkeypatch, tmp_path):
    def log_format(**overrides):
        return read_early(TelemetrySettings, overrides).log_format

    assert log_format() == "text"
    (tmp_path / ".env").write_text("LOG_FORMAT=json\nEMBEDDING_DIMENSIONS=many\n")
    assert log_format() == "json"
    monkeypatch.setenv("LOG_FORMAT", "text")
    assert log_format() == "text"
    assert log_format(log_format="json") == "json"
    assert log_format(log_format="xml") == "text"


def test_what_others_print_becomes_a_line_when_it_is_flushed(monkeypatch):
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    stream = JsonStream(handler)
    monkeypatch.setattr(sys, "stderr", stream)
    for printed in ("warning: \x1b[31mtwo\nlines\x1b[0m\n", " \n"):
        sys.stderr.write(printed)
        sys.stderr.flush()
    (line,) = lines_of(written.getvalue())
    assert (line["level"], line["message"]) == ("WARNING", "warning: two\nlines")


@given(
    HARMLESS, st.text("abcXYZ0123456789/@:!$%*", min_size=4, max_size=20).map(lambda s: f"SECRET{s}SECRET"), HARMLESS
)
def test_no_line_has_the_password_of_a_url(before, secret, after):
    line = masked(f"{before} postgresql://me:{secret}@host:5432/db {after}")
    assert "SECRET" not in line
    assert "@host:5432/db" in line


@pytest.mark.parametrize(
    "said",
    [
        "password=hunter2",
        "sslpassword: hunter2",
        '{"password": "hunter2"}',
        r"{\"api_key\": \"hunter2\"}",
        "EMBEDDING_API_KEY=hunter2",
        "Authorization: Bearer hunter2",
        "https://x/?token=hunter2&y=1",
    ],
)
def test_no_line_has_a_parameter_that_is_named_like_a_secret(said):
    assert "hunter2" not in masked(f"before {said} after")
    assert masked(f"before {said} after").endswith("after")


def test_figures_are_left_as_they_are():
    assert masked("tokens: 300, token_count=5; 12 of 13 rows") == "tokens: 300, token_count=5; 12 of 13 rows"
