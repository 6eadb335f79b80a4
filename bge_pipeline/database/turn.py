"""Work that one process at a time does on a column, and that all others leave to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError

logger = logging.getLogger(__name__)

_TAKE = "SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"


@contextmanager
def turn(database: Database, target: TargetTable, work: str) -> Iterator[bool]:
    """Whether the work on the embedding column is this process' for the length of the block; False where another is at it.

    The lock is a transaction's, so that it ends with its process, and with a pooler's connection too. Between statements that
    transaction has no snapshot, for which an index build would wait. A connection that was lost meanwhile costs the turn alone.
    """
    is_done = False
    name = f"{target}.{target.embedding_column}: {work}"
    try:
        with database.transaction() as connection:
            yield bool(connection.execute(text(_TAKE), {"name": name}).scalar_one())
            is_done = True
    except (BgePipelineError, SQLAlchemyError) as error:
        if not is_done:
            raise
        logger.debug("the turn at %s ended before its work: %s", name, error)
