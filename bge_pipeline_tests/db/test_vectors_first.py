"""A vector that the application writes in a statement before the text's is the text's, within one transaction and not beyond."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.trigger import trigger_fault
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.safeguards import watched_columns
from bge_pipeline.phases.state import require_table
from bge_pipeline_tests.support import (
    ENCODER,
    application,
    execute,
    fill,
    fill_and_swap,
    scalar,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

VECTOR = str([1.0] + [0.0] * 383)
OTHER_VECTOR = str([0.0, 1.0] + [0.0] * 382)
V = f"UPDATE segments SET embedding = '{VECTOR}' WHERE id = 1"
W = f"UPDATE segments SET embedding = '{OTHER_VECTOR}' WHERE id = 1"
T = "UPDATE segments SET text = 'another text' WHERE id = 1"
U = "UPDATE segments SET text = 'a third text' WHERE id = 1"
BOTH = f"UPDATE segments SET text = 'both', embedding = '{VECTOR}' WHERE id = 1"
LABEL = "UPDATE segments SET speaker_label = 'x' WHERE id = 1"
SAME = "UPDATE segments SET embedding = embedding WHERE id = 1"

IN_A_TRANSACTION = [
    ([V, T], "v"),
    ([T, V], "v"),
    ([V, LABEL, T], "v"),
    ([V, W, T], "w"),
    ([BOTH], "v"),
    # One vector is that of one text.
    ([V, T, U], None),
    ([T, V, U], None),
    ([BOTH, U], None),
    ([V, BOTH, U], None),
    ([V, T, W, U], None),
    # A vector that is written again as it was is not another text's.
    ([SAME, T], None),
    # Who touched the row before may have changed its text before.
    ([LABEL, V, T], None),
    ([LABEL, T], None),
    # What is taken back has not been.
    (["SAVEPOINT s", V, "RELEASE s", T], "v"),
    ([V, "SAVEPOINT s", T, "RELEASE s"], "v"),
    (["SAVEPOINT s", V, "ROLLBACK TO s", T], None),
    ([V, "SAVEPOINT s", T, "ROLLBACK TO s", U], "v"),
    (["SAVEPOINT s", T, "RELEASE s", V, U], None),
    (["SAVEPOINT s", T, "ROLLBACK TO s", V, U], "v"),
]

In = Callable[..., str | None]


@pytest.fixture
def in_transaction(database: Database, migration: Migration) -> In:
    """Runs statements of an application in one transaction after the swap; which vector a row has then."""
    fill_and_swap(migration)

    def run(*statements: str, row: int = 1) -> str | None:
        with application(database) as other:
            for statement in statements:
                other.exec_driver_sql(statement.replace("id = 1", f"id = {row}"))
            other.commit()
        kept = scalar(database, f"SELECT embedding::text FROM segments WHERE id = {row}")
        return {"1": "v", "0": "w"}.get(kept[1], "other") if kept is not None else None

    return run


def test_within_a_transaction_what_was_written_first_decides(in_transaction: In):
    found = [(acts, in_transaction(*acts, row=row)) for row, (acts, _) in enumerate(IN_A_TRANSACTION, start=1)]
    assert found == IN_A_TRANSACTION


def test_in_two_transactions_the_text_makes_the_row_pending(in_transaction: In):
    assert in_transaction(V) == "v"
    assert in_transaction(T) is None
    assert in_transaction(V) == "v", "text first, in any number of transactions"


def test_statements_that_commit_by_themselves_are_transactions(database: Database, in_transaction: In):
    for statement in (V, T):
        execute(database, statement)
    assert scalar(database, "SELECT embedding IS NULL FROM segments WHERE id = 1")


def test_another_row_keeps_nothing_by_it(database: Database, in_transaction: In):
    in_transaction(V, T.replace("id = 1", "id IN (1, 2)"))
    assert [row[0] for row in execute(database, "SELECT id FROM segments WHERE embedding IS NULL")] == [2]


def test_many_rows_at_once_keep_theirs_as_far_as_it_remembers_and_the_others_are_only_pending(
    database: Database, in_transaction: In
):
    rows = "WHERE id BETWEEN 1 AND 150"
    in_transaction(
        f"UPDATE segments SET embedding = '{VECTOR}' {rows}", f"UPDATE segments SET text = text || '!' {rows}"
    )
    assert scalar(database, "SELECT count(*) FROM segments WHERE embedding IS NULL") == 50
    assert scalar(database, f"SELECT count(*) FROM segments WHERE embedding = '{VECTOR}'") == 100


def test_the_old_vector_goes_all_the_same(database: Database, in_transaction: In):
    in_transaction(V, T)
    assert scalar(database, "SELECT embedding_1536 IS NULL FROM segments WHERE id = 1")


def test_an_application_that_writes_the_new_column_before_the_swap(database: Database, migration: Migration):
    fill(migration)
    with application(database) as other:
        other.exec_driver_sql(V.replace("embedding", "embedding_384"))
        other.exec_driver_sql(T)
        other.commit()
    assert scalar(database, "SELECT embedding_384 IS NOT NULL FROM segments WHERE id = 1")


def test_a_text_made_of_several_columns(database: Database, make_settings: Callable[..., object]):
    migration = Migration(database, make_settings(target_text="text || ' by ' || coalesce(speaker_label, 'nobody')"))
    fill_and_swap(migration)
    with application(database) as other:
        other.exec_driver_sql(V)
        other.exec_driver_sql(LABEL)
        other.exec_driver_sql(V.replace("id = 1", "id = 2"))
        other.exec_driver_sql(T.replace("id = 1", "id = 3"))
        other.commit()
    assert [row[0] for row in execute(database, "SELECT id FROM segments WHERE embedding IS NULL")] == [3]


def test_whatever_the_key_is_called_no_statement_fails(database: Database, make_settings: Callable[..., object]):
    key = 'a"{b}%:c.'
    quoted = '"' + key.replace('"', '""') + '"'
    with database.transaction() as connection:
        connection.exec_driver_sql(f"ALTER TABLE segments RENAME COLUMN id TO {quoted}".replace("%", "%%"))
    fill_and_swap(Migration(database, make_settings(target_id_column=key)))
    with application(database) as other:
        other.exec_driver_sql(V.replace("id = 1", f"{quoted} = 1").replace("%", "%%"))
        other.exec_driver_sql(T.replace("id = 1", f"{quoted} = 1").replace("%", "%%"))
        other.exec_driver_sql(f"ALTER TABLE segments RENAME COLUMN {quoted} TO other".replace("%", "%%"))
        other.exec_driver_sql(V.replace("id = 1", "other = 2"))
        other.exec_driver_sql(T.replace("id = 1", "other = 2"))
        other.commit()
    assert [row[0] for row in execute(database, "SELECT other FROM segments WHERE embedding IS NULL")] == [2]


def test_the_triggers_follow_a_migration_there_and_back_and_to_the_next(
    database: Database, make_settings: Callable[..., object]
):
    migration = Migration(database, make_settings())

    def fault() -> str | None:
        state = require_table(migration)
        watched = watched_columns(state)
        assert watched is not None
        with database.autocommit() as connection:
            return trigger_fault(connection, describe_table(connection, migration.target), watched)

    fill_and_swap(migration)
    assert fault() is None
    rollback(migration)
    assert fault() is None
    fill_and_swap(migration)
    retire(migration)
    assert fault() is None
    assert wrong_vectors(database, ENCODER, "embedding") == []
    execute(database, 'DROP TRIGGER "~segments_embedding_written" ON segments')
    assert "_written" in str(fault())
    expand(migration, ENCODER.space)
    assert fault() is None
