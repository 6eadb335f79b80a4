"""A row's text and a name are shown on a terminal as they are: they colour nothing, move nothing and break no table."""

from __future__ import annotations

import io
import logging

import pytest
from rich.logging import RichHandler
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from bge_pipeline.cli.consent import confirm
from bge_pipeline.cli.printing import print_facts
from bge_pipeline.cli.printing_search import print_search
from bge_pipeline.console import inert, make_console
from bge_pipeline.search.results import SearchResponse, SearchResult, StageSeconds

TITLE = "\x1b]0;owned\x07"
NASTY = f"a{TITLE}b\x1b[2J\x1b[31mc\x9b31md\x7f\re\u202ef [bold]g[/bold] [/h] :smile:"
HARMLESS = "a␛]0;ownedb␛[2J␛[31mc�31md␡e�f [bold]g[/bold] [/h] :smile:"
"""What is shown of it; rich leaves the bell and the carriage return out."""


@pytest.fixture
def console(monkeypatch):
    """A console that takes what it writes to for a terminal with colours."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    found = make_console(on_stderr=True)
    found.file = io.StringIO()
    return found


def commands(said: str) -> list[str]:
    """What of the nasty text a terminal would obey."""
    return [part for part in ("\x1b]", "\x07", "\x1b[2J", "\x1b[31mc", "\x9b", "\x7f", "\u202e") if part in said]


def test_what_is_printed_commands_nothing(console):
    table = Table(title=NASTY)
    table.add_column(NASTY)
    table.add_row(Text(NASTY, "bold"))
    console.print(table)
    console.print(NASTY)
    console.print(NASTY, style="bold red")
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(NASTY, total=1)
    said = console.file.getvalue()
    assert commands(said) == []
    assert HARMLESS in said
    assert "\x1b[1;31m" in said, "colours of our own are left"


def test_a_log_line_commands_nothing(console):
    logger = logging.Logger("of this test")
    logger.addHandler(RichHandler(console=console, show_path=False, show_time=False, markup=False))
    logger.warning("%s", NASTY)
    assert commands(console.file.getvalue()) == []
    assert "a␛" in console.file.getvalue()


def test_facts_may_be_titled_by_any_name(console):
    print_facts(NASTY, {"a name": NASTY}, console=console)
    assert commands(console.file.getvalue()) == []
    assert "[/h]" in console.file.getvalue()


def test_results_of_a_search_are_shown_as_they_are(capsys):
    found = SearchResult(id=NASTY, text=NASTY, score=0.5)
    seconds = StageSeconds(**dict.fromkeys(StageSeconds.__dataclass_fields__, 0.0))
    print_search(SearchResponse((found,), "dense", False, (), NASTY, seconds), explain=True)
    said = capsys.readouterr().out
    assert HARMLESS in said
    assert commands(said) == []


def test_a_question_asks_by_any_name(monkeypatch, capsys):
    monkeypatch.setattr("bge_pipeline.cli.consent.has_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    confirm(f"This drops {NASTY}.", yes=False)
    assert commands(capsys.readouterr().err) == []


def test_ordinary_text_is_left_alone():
    ordinary = "naïve ключ 本文 🙂 a\tb\nc \u200f\u05d0 e\u0301"
    assert inert(ordinary) == ordinary
