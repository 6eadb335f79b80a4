"""What a person sees of the main commands at 60, 80 and 200 columns, with NO_COLOR and in a pipe: files of screens/.

Renew them with RENEW_SCREENS=1 in the environment, and read what changed before it is committed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("pyte", reason="needs pyte: pip install pyte")

from bge_pipeline.demo.table import legacy_encoder
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.cli.terminal import Screen, in_pipe, on_terminal
from bge_pipeline_tests.roads import ROOT, environment
from bge_pipeline_tests.support import execute, fill_and_swap, store_vectors

pytestmark = [
    pytest.mark.pgvector,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "TEST_DATABASE_URL" in os.environ, reason="the screens show the embedded server's version and index names"
    ),
]

SCREENS = Path(__file__).parent / "screens"
QUESTION = "how do I cancel a late order"
LOOKING: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "discover": ("discover",),
    "plan": ("plan",),
    "status": ("status",),
    "doctor": ("doctor",),
}
LOOKING_AFTER_A_SWAP: dict[str, tuple[str, ...]] = {
    "status-swapped": ("status",),
    "search": ("search", QUESTION, "--top-k", "3", "--mode", "hybrid", "--explain"),
    "compare-search": ("compare-search", QUESTION, "--top-k", "3"),
}
WAYS = [
    pytest.param(("80", "pipe"), id="80-and-pipe"),
    pytest.param(("60", "200", "no-color"), id="60-200-and-no-color", marks=pytest.mark.thorough),
]
Look = Callable[[tuple[str, ...], str], Screen]


@pytest.fixture
def table(migration: Migration) -> Migration:
    """`segments` with texts that are the same whatever Python's documentation says."""
    database = migration.database
    execute(database, "TRUNCATE segments RESTART IDENTITY")
    what = ("an order", "an invoice", "a parcel", "a refund", "a gift card", "a subscription")
    does = ("cancel", "pay", "return", "track", "change", "confirm", "dispute")
    when = ("that is late", "of last year", "from abroad", "by telephone", "without a receipt", "in the app")
    for number, (verb, thing, case) in enumerate(product(does, what, when)):
        execute(
            database,
            "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
            "SELECT min(id), 'help', :number, :number + 1, :text FROM sources",
            number=number,
            text=f"To {verb} {thing} {case}, open the help centre and choose the entry number {number}.",
        )
    store_vectors(database, "embedding", legacy_encoder(migration.settings))
    with database.autocommit() as connection:
        connection.exec_driver_sql("VACUUM (FULL, ANALYZE) segments")
    return migration


@pytest.fixture
def look(settings: Settings, tmp_path: Path) -> Look:
    """Runs the command and looks at what it leaves, in one of the ways."""

    def run(arguments: tuple[str, ...], way: str) -> Screen:
        command = [sys.executable, "-m", "bge_pipeline_tests.cli.steady", *arguments]
        given = environment(settings, QUALITY_GATE="off", PYTHONPATH=str(ROOT), TERM="xterm-256color")
        plain = {name: value for name, value in given.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
        if way == "pipe":
            return in_pipe(command, plain, tmp_path)
        if way == "no-color":
            return on_terminal(command, 80, plain | {"NO_COLOR": "1"}, tmp_path)
        return on_terminal(command, int(way), plain, tmp_path)

    return run


@pytest.mark.parametrize("ways", WAYS)
def test_commands_that_look_are_seen_as_they_are_kept(table: Migration, look: Look, ways: Sequence[str]) -> None:
    for (name, arguments), way in product(LOOKING.items(), ways):
        assert_as_kept(name, way, look(arguments, way))

    fill_and_swap(table)
    for (name, arguments), way in product(LOOKING_AFTER_A_SWAP.items(), ways):
        assert_as_kept(name, way, look(arguments, way))


@pytest.mark.parametrize("ways", WAYS)
def test_a_migration_and_the_way_back_are_seen_as_they_are_kept(
    table: Migration, look: Look, ways: Sequence[str]
) -> None:
    for way in ways:
        # Its index goes, so that the way back builds it.
        assert_as_kept("migrate", way, look(("migrate", "--yes", "--set", "OLD_INDEX=drop"), way))
        assert_as_kept("rollback", way, look(("rollback", "--yes"), way))
        collapse(table)


def test_a_terminal_has_colors_where_nobody_declines_them(table: Migration, look: Look) -> None:
    assert "green" in look(("doctor",), "80").colors


def assert_as_kept(name: str, way: str, seen: Screen) -> None:
    """Compare with the file, and see that the way is what it says."""
    assert seen.exit_code == 0, seen.text
    if way == "no-color":
        assert seen.colors == frozenset()
    elif way == "pipe":
        assert "\x1b" not in seen.text
        assert not re.search(" $", seen.text, re.MULTILINE), "no padding in a pipe"
    else:
        assert max(map(len, seen.text.splitlines())) <= int(way)
    kept = SCREENS / f"{name}-{way}.txt"
    if "RENEW_SCREENS" in os.environ:
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(seen.text, encoding="utf-8")
    assert seen.text == kept.read_text(encoding="utf-8"), f"RENEW_SCREENS=1 renews {kept.name}, if that is meant"
