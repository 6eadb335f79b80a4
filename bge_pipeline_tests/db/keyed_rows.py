"""Reading and writing the pending rows of a table `notes` whose key is whatever a test wants; vectors are made of lengths."""

from __future__ import annotations

import numpy as np

from bge_pipeline.database.catalog import TableDescription, describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import CommitRules, Destination, VectorWriter
from bge_pipeline_tests.support import as_it_stands


def described(database: Database, target: TargetTable) -> TableDescription:
    """The table as the catalog has it."""
    with database.autocommit() as connection:
        return describe_table(connection, target)


def read(database: Database, target: TargetTable, id_range: IdRange | None = None) -> list[str]:
    """Ids of the pending rows as text, in the order in which they are read, three at a time."""
    with database.autocommit() as connection:
        return [id_as_text(i) for batch in read_pending(connection, target, "v", 3, id_range) for i in batch.ids]


def write_all(database: Database, table: TableDescription) -> int:
    """Give every pending row a vector that is made of its text; returns how many rows took it."""
    destination = Destination(table.target, "v", table.columns["v"].number, table.id_kind, 2)
    writer = VectorWriter(database, destination, CommitRules(max_lock_ms=1_000, max_rows=3))
    stored = 0
    with writer, database.autocommit() as connection:
        for batch in read_pending(connection, table.target, "v", 3):
            vectors = np.array([[len(words), len(words.encode())] for words in batch.texts], np.float32)
            stored += writer.write(batch, vectors).rows
    return stored


def wrong_rows(database: Database) -> int:
    """Rows whose vector is not the one that `write_all` makes of their text, or that have none."""
    made = "('[' || length(text) || ',' || octet_length(text) || ']')::vector"
    ((count,),) = as_it_stands(database, f"SELECT count(*) FROM notes WHERE v IS DISTINCT FROM {made}")
    return int(count)
