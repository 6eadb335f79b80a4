"""Writing vectors: binary COPY into a staging table, then one UPDATE of the rows that are still as they were read."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from psycopg2.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.binary_copy import staged_vectors
from bge_pipeline.database.catalog import IdKind
from bge_pipeline.database.connection import Database
from bge_pipeline.database.reader import PendingBatch
from bge_pipeline.database.target import TargetTable

logger = logging.getLogger(__name__)

_STAGING = "bge_pipeline_staging"

# synchronous_commit: a crash of the server may lose the last commits, and NULL then says that they are missing.
# enable_*: the staging table is small and has no statistics; the plan must stay one index lookup a row.
# lock_timeout is below deadlock_timeout (1 s by default), so that this session gives way before PostgreSQL would
# have to choose a victim, which could be the application's transaction.
_SESSION = """
SET synchronous_commit = off;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET lock_timeout = '300ms'
"""


class VectorWriter:
    """Writes batches of vectors into one column; owns one connection, used by one thread."""

    def __init__(self, database: Database, target: TargetTable, column: str, id_kind: IdKind, dimensions: int) -> None:
        self._database = database
        self._target = target
        self._column = column
        self._id_kind = id_kind
        self._dimensions = dimensions
        self._connection: Connection | None = None

    def write(self, batch: PendingBatch, vectors: NDArray[np.float32]) -> int:
        """Commit the vectors of rows that are still pending and unchanged; returns how many those were.

        A row that somebody else has locked is left pending, and so is a row that was edited since it was read.

        Args:
            batch: n rows.
            vectors: float32 (n, dimensions), in the same order.
        """
        try:
            return self._write(batch, vectors, skip_locked=False)
        except DBAPIError as error:
            if not isinstance(error.orig, LockNotAvailable):
                self.close()
                raise
            logger.debug("rows are locked by the application; writing the others")
            return self._write(batch, vectors, skip_locked=True)

    def close(self) -> None:
        """Give the connection up, staging table and session settings with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _write(self, batch: PendingBatch, vectors: NDArray[np.float32], *, skip_locked: bool) -> int:
        connection = self._open()
        with connection.begin():
            cursor = cast("Any", connection.connection.cursor())
            cursor.copy_expert(
                f"COPY pg_temp.{_STAGING} FROM STDIN (FORMAT binary)",
                staged_vectors(self._id_kind, batch.ids, batch.versions, vectors),
            )
            return connection.execute(self._update(skip_locked=skip_locked)).rowcount

    def _open(self) -> Connection:
        if self._connection is None:
            connection = self._database.engine.connect()
            try:
                with connection.begin():
                    connection.execute(text(_SESSION))
                    id_type = "bigint" if self._id_kind == "integer" else "uuid"
                    connection.execute(
                        text(
                            f"CREATE TEMPORARY TABLE {_STAGING} (id {id_type}, version xid, "
                            f"vector vector({self._dimensions})) ON COMMIT DELETE ROWS"
                        )
                    )
            except DBAPIError:
                connection.invalidate()
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _update(self, *, skip_locked: bool) -> Any:
        source = f"pg_temp.{_STAGING}"
        if skip_locked:
            source = (
                f"(SELECT s.* FROM pg_temp.{_STAGING} s JOIN {{table}} l ON l.{{id}} = s.id "
                "FOR NO KEY UPDATE OF l SKIP LOCKED)"
            )
        return self._target.sql(
            f"UPDATE {{table}} t SET {{column}} = s.vector FROM {source} s "
            "WHERE t.{id} = s.id AND t.xmin = s.version AND t.{column} IS NULL",
            column=self._column,
        )
