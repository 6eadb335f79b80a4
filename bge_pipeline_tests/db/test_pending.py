"""Whether anything is pending is answered by the partial index, whatever the planner believes about the table."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import event

from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.database.pending import (
    LACKS_VECTOR,
    count_pending,
    count_rows,
    has_more_pending_than,
    pending_index_statement,
)
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline_tests.support import application, execute, put_in_quarantine, require_icu, scalar, statements_of

pytestmark = pytest.mark.pgvector


def plan_of(database, act):
    """The plans of the statements that `act` runs."""
    plans = []
    for statement, values in statements_of(database, act):
        with database.autocommit() as connection:
            raw = connection.connection.dbapi_connection.cursor()
            raw.execute(f"EXPLAIN {statement}", values)
            plans += [row[0] for row in raw.fetchall()]
    return "\n".join(plans)


@pytest.fixture
def many(database, column):
    """20,000 pending rows, so many that the planner has a choice to make, and their index."""
    execute(database, "INSERT INTO notes SELECT n, 'text ' || repeat('x', 200) FROM generate_series(1, 20000) n")
    with database.autocommit() as connection:
        connection.execute(pending_index_statement(column, "v", "ix_pending"))
    return column


@pytest.mark.parametrize("analysed", ["never", "while empty", "while full"])
@pytest.mark.parametrize("full", [False, True], ids=["all pending", "none pending"])
@pytest.mark.parametrize(
    "question",
    [
        lambda c, target: has_more_pending_than(c, target, "v", 0),
        lambda c, target: count_pending(c, target, "v", IdRange(100, 200, INTEGERS)),
        lambda c, target: next(read_pending(c, target, "v", 50), None),
        lambda c, target: next(read_pending(c, target, "v", 50, IdRange(100, 200, INTEGERS)), None),
    ],
    ids=["is more pending", "count a range", "read", "read a range"],
)
def test_what_is_pending_is_answered_by_the_partial_index(database, many, question, full, analysed):
    if analysed == "while empty":
        execute(database, "ANALYZE notes")
    if full:
        execute(database, "UPDATE notes SET v = '[1,0]'")
    if analysed == "while full":
        execute(database, "ANALYZE notes")
    plan = plan_of(database, lambda connection: question(connection, many))
    assert " on notes t" in plan
    assert plan.count("ix_pending") == plan.count(" on notes t")


def test_counts_are_of_rows_with_text_and_without_vector(database, column):
    execute(database, "INSERT INTO notes VALUES (1, 'a'), (2, 'b'), (3, ' '), (4, NULL), (5, 'e'), (6, 'f')")
    execute(database, "UPDATE notes SET v = '[1,2]' WHERE id = 1")
    put_in_quarantine(database, 2, 5, table="notes", quarantine="notes_v_quarantine")
    execute(database, "UPDATE notes_v_quarantine SET row_id = 99 WHERE row_id = 5")
    with database.autocommit() as connection:
        counts = count_rows(connection, column, "v")
        assert count_pending(connection, column, "v") == 2
        assert [has_more_pending_than(connection, column, "v", n) for n in (0, 1, 2)] == [True, True, False]
    assert (counts.rows, counts.embedded, counts.pending, counts.quarantined, counts.without_text) == (6, 1, 2, 1, 2)


def test_counts_fit_each_other_while_the_application_writes(database, column):
    """Every statement of the count finds five more rows and five more vectors than the one before."""
    execute(database, "INSERT INTO notes SELECT n, 'text' FROM generate_series(1, 50) n")
    put_in_quarantine(database, 1, table="notes", quarantine="notes_v_quarantine")
    writes = itertools.count()

    def write(*_):
        first = 1_000 + 5 * next(writes)
        with application(database) as other:
            other.exec_driver_sql(f"INSERT INTO notes SELECT n, 'text' FROM generate_series({first}, {first + 4}) n")
            other.exec_driver_sql(
                "UPDATE notes SET v = '[1,0]' WHERE id IN (SELECT id FROM notes WHERE v IS NULL AND id > 1 LIMIT 5)"
            )
            other.commit()

    event.listen(database.engine, "after_cursor_execute", write)
    with database.autocommit() as connection:
        counts = count_rows(connection, column, "v")
    assert counts.quarantined == 1
    assert counts.pending + counts.embedded + counts.quarantined == counts.rows > 50


def test_a_row_in_a_nondeterministic_collation_can_be_pending(database):
    require_icu(database)
    execute(database, "CREATE TABLE notes (id int PRIMARY KEY, text text COLLATE loose, v vector(2))")
    execute(database, "INSERT INTO notes VALUES (1, 'a'), (2, ' ')")
    predicate = LACKS_VECTOR.format(column="v", text="text")
    execute(database, f"CREATE INDEX ON notes (id) WHERE {predicate}")
    assert scalar(database, f"SELECT count(*) FROM notes WHERE {predicate}") == 1
