"""Where vectors are stored: out of line, so that a row that gets one grows by a pointer and still fits into its page.

PostgreSQL moves the largest values of a row out of line when the row has over 2 kB, until it has `toast_tuple_target` bytes
or fewer. A vector of 384 dimensions, 1,544 bytes, may stay inside; with a target below its size it never does.
https://www.postgresql.org/docs/current/storage-toast.html
"""

from __future__ import annotations

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vector_type import VectorType

DEFAULT_TARGET = 2_032
"""Bytes of a row, by PostgreSQL's default: four rows in a page."""

_LEAST_TARGET = 128
_MARGIN = 44
"""What a row has beside the vector, at least."""

_TARGET = """
SELECT option_value::int FROM pg_class c, pg_options_to_table(c.reloptions)
WHERE c.oid = CAST(:table AS regclass) AND option_name = 'toast_tuple_target'
"""


def tuple_target_for(vector: VectorType) -> int:
    """The `toast_tuple_target` at which vectors of that type are stored out of line."""
    return max(_LEAST_TARGET, min(DEFAULT_TARGET, vector.bytes - _MARGIN))


def lowered_target(connection: Connection, target: TargetTable, vector: VectorType) -> int | None:
    """What the table's `toast_tuple_target` is, 0 for the default, if vectors of that type need a lower one."""
    own: int | None = connection.execute(text(_TARGET), {"table": str(target)}).scalar_one_or_none()
    return (own or 0) if (own or DEFAULT_TARGET) > tuple_target_for(vector) else None


def tuple_target_statement(target: TargetTable, value: int | None) -> TextClause:
    """The statement that sets `toast_tuple_target`, or with None takes it away; it blocks neither readers nor writers."""
    if value is None:
        return target.sql("ALTER TABLE {table} RESET (toast_tuple_target)")
    return target.sql("ALTER TABLE {table} SET (toast_tuple_target = {value})", value=value)
