"""Statements of others are shown short, in one line, and without anything that could be secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.database.statement_text import shown_statement


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("UPDATE t\n  SET a = 'secret'\tWHERE id = 17", "UPDATE t SET a = ? WHERE id = ?"),
        ("SELECT 1.5, .5, 1e10, -3, 0xFF", "SELECT ?, ?, ?, -?, ?"),
        ("SELECT * FROM t1 WHERE c2 = $1", "SELECT * FROM t1 WHERE c2 = $1"),
        ('SELECT "it\'s 5", \'x\' FROM "o""dd"', 'SELECT "it\'s 5", ? FROM "o""dd"'),
        ("SELECT E'it\\'s secret', 'y'", "SELECT ?, ?"),
        ("SELECT 'it''s secret'", "SELECT ?"),
        ("DO $$ BEGIN PERFORM 'secret'; END $$", "DO ?"),
        ("SELECT $tag$ a $$ secret $tag$ + 1", "SELECT ? + ?"),
        ("SELECT N'a', B'01', X'ff', U&'b'", "SELECT ?, ?, ?, ?"),
        ("/* user 17 */ SELECT a -- 'secret\nFROM t", "SELECT a FROM t"),
        ("SELECT 'cut off by the server", "SELECT ?"),
        ("SELECT $$cut off", "SELECT ?"),
        ("SELECT /* cut off", "SELECT"),
    ],
)
def test_literals_and_comments_are_left_out(statement, shown):
    assert shown_statement(statement) == shown


def test_a_long_statement_is_cut():
    shown = shown_statement("SELECT " + "column_name, " * 50)
    assert len(shown) == 80
    assert shown.endswith("...")


def test_where_a_backslash_makes_the_end_of_a_literal_doubtful_the_rest_is_left_out():
    assert shown_statement(r"SELECT 'a\', 'secret' FROM t") == "SELECT ? ..."
    assert "secret" not in shown_statement(r"SELECT 'it\'s secret'")


@given(st.text("ab '\"\\$e17-\n/*", max_size=30), st.sampled_from(["'{}'", "E'{}'", "$${}$$", "$q${}$q$"]))
def test_no_literal_gets_through(inner, form):
    literal = form.format(inner.replace("\\", "").replace("'", "''").replace("$", "") + "SECRET")
    assert "SECRET" not in shown_statement(f"SELECT a FROM t WHERE b = {literal} AND c = 1", longest=1_000)
