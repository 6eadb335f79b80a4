"""A column's note is JSON in its comment; comments of other people are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.database.notes import ColumnNote

notes = st.builds(
    ColumnNote,
    role=st.sampled_from(["legacy", "new", "current", "previous"]),
    space=st.none() | st.dictionaries(st.text(), st.text() | st.integers() | st.booleans()),
    dropped_indexes=st.lists(st.text(), max_size=3).map(tuple),
    not_null=st.booleans(),
    comment=st.none() | st.text(),
    embedding_column=st.none() | st.text(min_size=1),
    maintained=st.booleans(),
    search_effort=st.none() | st.integers(1),
    rolled_back=st.none() | st.text(min_size=1),
)


@given(notes)
def test_a_note_comes_back_as_it_was_written(note):
    assert ColumnNote.from_comment(note.as_comment()) == note


@pytest.mark.parametrize(
    "comment",
    [None, "", "semantic vector", '{"other": 1}', "bge_pipeline", '{"bge_pipeline": 1}', '{"bge_pipeline": {}}', "[1]"],
)
def test_a_comment_of_somebody_else_is_no_note(comment):
    assert ColumnNote.from_comment(comment) is None


def test_a_note_of_a_later_version_can_be_read():
    comment = '{"bge_pipeline": {"role": "current", "space": {"model": "m"}, "invented_later": 1}}'
    assert ColumnNote.from_comment(comment) == ColumnNote("current", {"model": "m"})
