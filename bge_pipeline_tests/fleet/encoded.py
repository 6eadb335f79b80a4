"""How many texts backfills have encoded, as workers that include `counting` note it."""

from __future__ import annotations

from pathlib import Path

FILE = "BGE_PIPELINE_TESTS_ENCODED"
"""Variable: where it is noted."""
SECONDS = "BGE_PIPELINE_TESTS_SECONDS"
"""Variable: how long a batch takes, as a network would."""
COUNTING = ("--include", "bge_pipeline_tests.fleet.counting")
"""Options of `celery worker`."""


def encoded(file: Path) -> int:
    """Texts encoded so far."""
    return sum(map(int, file.read_text().split())) if file.exists() else 0
