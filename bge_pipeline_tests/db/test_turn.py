"""One process at a time is at the work of a column, and one that died or lost its connection keeps nobody from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.turn import turn
from bge_pipeline_tests.support import SEGMENTS, scalar

pytestmark = pytest.mark.pgvector

END_HOLDER = """
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND d.datname = current_database()
"""


def test_another_is_told_to_leave_it_until_it_is_over(database, database_url):
    with Database(database_url) as other:
        with turn(database, SEGMENTS, "work") as is_ours, turn(other, SEGMENTS, "work") as is_theirs:
            assert (is_ours, is_theirs) == (True, False)
        with turn(other, SEGMENTS, "work") as is_theirs:
            assert is_theirs


def test_other_work_and_another_column_have_turns_of_their_own(database, database_url):
    title = replace(SEGMENTS, embedding_column="title_embedding")
    with Database(database_url) as other, turn(database, SEGMENTS, "work"):
        with turn(other, SEGMENTS, "other work") as is_theirs:
            assert is_theirs
        with turn(other, title, "work") as is_theirs:
            assert is_theirs


def test_a_connection_that_was_lost_meanwhile_costs_the_turn_and_not_the_work(database):
    with turn(database, SEGMENTS, "work") as is_ours:
        assert scalar(database, END_HOLDER)
    assert is_ours
    with turn(database, SEGMENTS, "work") as is_ours:
        assert is_ours


def test_what_the_work_raises_is_raised(database):
    with pytest.raises(ZeroDivisionError), turn(database, SEGMENTS, "work"):
        _ = 1 / 0
    with turn(database, SEGMENTS, "work") as is_ours:
        assert is_ours
