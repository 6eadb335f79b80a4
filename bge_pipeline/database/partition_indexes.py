"""Vector indexes of a table as searches meet them: its own, or those that only its partitions have."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.indexes import Index, vector_indexes_on
from bge_pipeline.database.partitions import stored_tables
from bge_pipeline.database.target import TargetTable

_COLUMN = """
SELECT attrelid AS oid, attnum AS number FROM pg_attribute
WHERE attrelid = CAST(:table AS regclass) AND attname = :column AND NOT attisdropped
"""


def serving_indexes(connection: Connection, table: TableDescription, number: int) -> list[Index]:
    """The vector indexes on the column of that number; where a partitioned table has none, those of its partitions."""
    found = vector_indexes_on(connection, table.oid, number)
    column = table.with_number(number)
    if found or not table.is_partitioned or column is None:
        return found
    return [index for _, one in partition_indexes(connection, table.target, column.name) for index in one]


def partition_indexes(
    connection: Connection, target: TargetTable, column: str
) -> Iterator[tuple[TargetTable, list[Index]]]:
    """Each partition that has a column of that name, with the vector indexes on it; none of an ordinary table."""
    for partition in stored_tables(connection, target):
        values = {"table": str(partition), "column": column}
        row = None if partition is target else connection.execute(text(_COLUMN), values).one_or_none()
        if row is not None:
            yield partition, vector_indexes_on(connection, row.oid, row.number)
