"""Where vectors are stored: out of line, so that a row that gets one grows by a pointer and still fits into its page.

PostgreSQL moves the largest values of a row out of line when the row has over 2 kB, until it has `toast_tuple_target` bytes
or fewer. A vector of 384 dimensions, 1,544 bytes, may stay inside; with a target below its size it never does.
https://www.postgresql.org/docs/current/storage-toast.html
"""

from __future__ import annotations

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.partitions import STORED
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vector_type import VectorType

DEFAULT_TARGET = 2_032
"""Bytes of a row, by PostgreSQL's default: four rows in a page."""

_LEAST_TARGET = 128
_MARGIN = 44
"""What a row has beside the vector, at least."""

_TARGETS = f"""
SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid = CAST(:table AS regclass) AS is_itself, (
  SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'toast_tuple_target') AS own
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({STORED}) ORDER BY 1, 2
"""


def tuple_target_for(vector: VectorType) -> int:
    """The `toast_tuple_target` at which vectors of that type are stored out of line."""
    return max(_LEAST_TARGET, min(DEFAULT_TARGET, vector.bytes - _MARGIN))


def targets_to_lower(connection: Connection, target: TargetTable, vector: VectorType) -> dict[TargetTable, int]:
    """The tables whose `toast_tuple_target` vectors of that type need lower, and what it is, 0 for the default.

    The table itself, or its partitions, since a partitioned table takes no storage parameters; one for which somebody chose
    another value than the default is left as it is, so that there is one thing to go back to.
    """
    wanted = tuple_target_for(vector)
    return {
        target if row.is_itself else target.at(row.schema, row.name): row.own or 0
        for row in connection.execute(text(_TARGETS), {"table": str(target)})
        if (row.own or DEFAULT_TARGET) > wanted and (row.is_itself or row.own is None)
    }


def restored_targets(connection: Connection, target: TargetTable, vector: VectorType, before: int) -> list[TextClause]:
    """The statements that undo it where it was `before`, 0 for the default: of the table, or of each partition that has it."""
    return [
        tuple_target_statement(target, before or None)
        if row.is_itself
        else tuple_target_statement(target.at(row.schema, row.name), None)
        for row in connection.execute(text(_TARGETS), {"table": str(target)})
        if row.is_itself or row.own == tuple_target_for(vector)
    ]


def tuple_target_statement(target: TargetTable, value: int | None) -> TextClause:
    """The statement that sets `toast_tuple_target`, or with None takes it away; it blocks neither readers nor writers."""
    if value is None:
        return target.sql("ALTER TABLE {table} RESET (toast_tuple_target)")
    return target.sql("ALTER TABLE {table} SET (toast_tuple_target = {value})", value=value)
