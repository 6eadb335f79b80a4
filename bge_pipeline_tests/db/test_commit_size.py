"""Commits are as large as the locks of their rows allow, and take a page once each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.database.commit_size import CommitSize
from bge_pipeline.database.pending_reader import PendingBatch


def batch(blocks):
    rows = list(range(len(blocks)))
    return PendingBatch(rows, rows, [str(row) for row in rows], blocks)


@given(st.lists(st.integers(0, 5), max_size=400), st.integers(1, 300))
def test_pieces_are_the_batch_in_order(blocks, rows):
    size = CommitSize(50, 1_000)
    size.rows = rows
    pieces = list(size.pieces(batch(blocks)))
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(len(blocks)))
    assert all(0 < piece.stop - piece.start <= rows for piece in pieces)


def test_a_page_comes_once_in_a_commit():
    size = CommitSize(50, 1_000)
    size.rows = 1_000
    pieces = list(size.pieces(batch(list(range(200)) * 3)))
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 200), (200, 400), (400, 600)]


def test_few_pages_do_not_make_commits_tiny():
    size = CommitSize(50, 1_000)
    pieces = list(size.pieces(batch([0, 1] * 100)))
    assert min(piece.stop - piece.start for piece in pieces) >= 50


def test_commits_shrink_at_once_and_grow_step_by_step():
    size = CommitSize(50, 1_000)
    size.held(size.rows, 0.5)
    assert size.rows == 8, "a tenth of the rows, and a margin"
    for _ in range(30):
        size.held(size.rows, size.rows * 0.00001)
    assert size.rows == 1_000, "never more than may be"
    size.held(1_000, 60.0)
    assert size.rows == 1, "never none"
