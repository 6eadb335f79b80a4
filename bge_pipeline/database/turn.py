"""Work that one process at a time does on a table, and that all others leave to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable

_TAKE = "SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"


@contextmanager
def turn(database: Database, target: TargetTable, work: str) -> Iterator[bool]:
    """Whether the work is this process' for the length of the block; False where another is at it.

    The lock is a transaction's, so that it ends with its process, and with a pooler's connection too. Between statements that
    transaction has no snapshot, for which an index build would wait.
    """
    with database.transaction() as connection:
        yield bool(connection.execute(text(_TAKE), {"name": f"{target}: {work}"}).scalar_one())
