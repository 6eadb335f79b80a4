"""A column's note is JSON in its comment; comments of other people are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.space import EmbeddingSpace

spaces = st.builds(
    EmbeddingSpace,
    model=st.text(),
    revision=st.text(),
    dimensions=st.integers(1, 4_000),
    pooling=st.sampled_from(["cls", "mean"]),
    query_prompt=st.text(),
)
notes = st.builds(
    ColumnNote,
    role=st.sampled_from(["legacy", "new", "current", "previous"]),
    space=st.none() | spaces,
    dropped_indexes=st.lists(st.text(), max_size=3).map(tuple),
    not_null=st.booleans(),
    comment=st.none() | st.text(),
    embedding_column=st.none() | st.text(min_size=1),
    maintained=st.booleans(),
    search_effort=st.none() | st.integers(1),
    search_effort_index=st.none() | st.text(),
    rolled_back=st.none() | st.text(min_size=1),
    tuple_target_before=st.none() | st.integers(0),
)


@given(notes)
def test_a_note_comes_back_as_it_was_written(note):
    assert ColumnNote.from_comment(note.as_comment()) == note


@pytest.mark.parametrize(
    "comment",
    [
        None,
        "",
        "semantic vector",
        '{"other": 1}',
        "bge_pipeline",
        '{"bge_pipeline": 1}',
        '{"bge_pipeline": {}}',
        '{"bge_pipeline": {"role": "current", "space": {"model": "half"}}}',
        '{"bge_pipeline": {"role": "new", "space": 1}}',
        "[1]",
    ],
)
def test_a_comment_of_somebody_else_is_no_note(comment):
    assert ColumnNote.from_comment(comment) is None


def test_a_note_of_a_later_version_can_be_read():
    space = '{"model": "m", "revision": "r", "dimensions": 3, "pooling": "cls", "invented_later": 2}'
    comment = f'{{"bge_pipeline": {{"role": "current", "space": {space}, "invented_later": 1}}}}'
    assert ColumnNote.from_comment(comment) == ColumnNote("current", EmbeddingSpace("m", "r", 3, "cls"))
