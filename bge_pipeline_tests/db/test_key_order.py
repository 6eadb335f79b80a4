"""An index over several columns is a key in the one order in which PostgreSQL reads and compares them all by it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.errors import TargetTableError
from bge_pipeline_tests.support import SEGMENTS, execute

pytestmark = pytest.mark.pgvector

NOTES = replace(SEGMENTS, table="notes", embedding_column="v", id_columns=("tenant", "id"))


def make(database, index, *, divided=""):
    columns = "tenant int NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, text text, v vector(2)"
    execute(database, f"CREATE TABLE notes ({columns}) {divided}")
    execute(database, f"CREATE UNIQUE INDEX by_tenant ON notes ({index})")


def plan_of_a_window(database, table):
    """How the server finds the next rows behind one."""
    execute(
        database, "INSERT INTO notes (tenant, text) SELECT n % 3, 'a' FROM generate_series(1, 3000) n; ANALYZE notes"
    )
    window = IdRange((1, 100), (1, 2000), table.id_kind)
    statement = NOTES.sql(f"EXPLAIN SELECT FROM {{table}} t WHERE {window.condition} ORDER BY {{ids}} LIMIT 10")
    with database.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        return "\n".join(connection.execute(statement, window.values).scalars())


@pytest.mark.parametrize("index", ["tenant, id DESC", "tenant DESC, id", "tenant, id NULLS FIRST"])
def test_one_in_several_directions_is_refused_with_a_statement_that_mends_it(database, index):
    make(database, index)
    with database.autocommit() as connection, pytest.raises(TargetTableError) as refused:
        describe_table(connection, NOTES)
    assert "by_tenant sorts its columns in different directions" in refused.value.message
    (statement,) = re.findall(r"CREATE UNIQUE INDEX CONCURRENTLY[^;]+;", refused.value.next_step.splitlines()[1])
    with database.autocommit() as connection:
        connection.exec_driver_sql(statement)
        assert "Sort" not in plan_of_a_window(database, describe_table(connection, NOTES))


@pytest.mark.parametrize("index", ["tenant, id", "tenant DESC, id DESC"])
def test_one_in_one_direction_is_read_from_either_end(database, index):
    make(database, index)
    with database.autocommit() as connection:
        plan = plan_of_a_window(database, describe_table(connection, NOTES))
    assert "Sort" not in plan
    assert "Index Cond: ((ROW(" in plan


def test_of_one_whose_first_column_is_the_key_the_others_may_go_as_they_like(database):
    make(database, "id, tenant DESC", divided="PARTITION BY RANGE (tenant)")
    with database.autocommit() as connection:
        assert describe_table(connection, replace(NOTES, id_columns=("id",))).id_kind.sql_type == "bigint"
