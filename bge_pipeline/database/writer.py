"""Writing vectors: binary COPY into a staging table, then one UPDATE of the rows that are still as they were read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import numpy as np
import psycopg2
from numpy.typing import NDArray
from psycopg2.errors import LockNotAvailable
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.binary_copy import staged_vectors
from bge_pipeline.database.catalog import IdKind
from bge_pipeline.database.connection import Database, server_version
from bge_pipeline.database.reader import PendingBatch
from bge_pipeline.database.target import TargetTable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812

logger = logging.getLogger(__name__)

_STAGING = "bge_pipeline_staging"
_COPY = f"COPY pg_temp.{_STAGING} FROM STDIN (FORMAT binary)"

# synchronous_commit: a crash of the server may lose the last commits, and NULL then says that they are missing.
# enable_*: the staging table is small and has no statistics; the plan must stay one index lookup a row.
# lock_timeout: locked rows are skipped, but a trigger of the application may wait for others. Below deadlock_timeout
# (1 s by default), this session gives way before PostgreSQL would choose a victim, which could be the application.
_SESSION = """
SET synchronous_commit = off;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET lock_timeout = '300ms'
"""


# The subquery locks the rows that nobody else has locked and whose text is as it was read; they cannot change after that.
# A row whose version has changed may still have its text: one that the application touches all the time must not wait for ever.
# An exchange of the columns gives another one this name, perhaps of the same dimensions; the number tells them apart.
_UPDATE = f"""
UPDATE {{table}} t SET {{column}} = s.vector FROM (
  SELECT s.id, s.vector FROM pg_temp.{_STAGING} s JOIN {{table}} l ON l.{{id}} = s.id
  WHERE l.{{column}} IS NULL
    AND (CAST(:number AS integer) IS NULL OR EXISTS (
      SELECT FROM pg_attribute
      WHERE attrelid = CAST(:table_name AS regclass) AND attname = :column_name AND attnum = :number))
    AND (l.xmin = s.version OR md5(convert_to(l.{{text}}::text, 'UTF8'))::uuid = s.digest)
  FOR NO KEY UPDATE OF l SKIP LOCKED
) s WHERE t.{{id}} = s.id
"""
_POSTGRES_16 = 160_000
"""STORAGE became part of CREATE TABLE with PostgreSQL 16."""


class VectorWriter:
    """Writes batches of vectors into one column; owns one connection, used by one thread.

    With `number`, the column's in the catalog, it writes nothing once another column has its name.
    """

    def __init__(
        self,
        database: Database,
        target: TargetTable,
        column: str,
        id_kind: IdKind,
        dimensions: int,
        *,
        number: int | None = None,
    ) -> None:
        self._database = database
        self._meant = {"number": number, "table_name": str(target), "column_name": column}
        self._id_kind = id_kind
        self._dimensions = dimensions
        self._connection: Connection | None = None
        self._update = target.sql(_UPDATE, column=column)

    def write(self, batch: PendingBatch, vectors: NDArray[np.float32]) -> int:
        """Commit the vectors of rows that are still pending and unchanged; returns how many those were.

        A row that somebody else has locked is left pending, and so is a row whose text was edited since it was read.

        Args:
            batch: n rows.
            vectors: float32 (n, dimensions), in the same order.
        """
        try:
            return self._write(batch, vectors)
        except DBAPIError as error:
            self.close()
            if not isinstance(error.orig, LockNotAvailable):
                raise
            logger.debug("a trigger waited for a lock of the application; the batch stays pending")
            return 0

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

    def _write(self, batch: PendingBatch, vectors: NDArray[np.float32]) -> int:
        connection = self._open()
        with connection.begin():
            self._stage(connection, batch, vectors)
            return connection.execute(self._update, self._meant).rowcount

    def _stage(self, connection: Connection, batch: PendingBatch, vectors: NDArray[np.float32]) -> None:
        raw = cast("RawConnection", connection.connection.dbapi_connection)
        stream = staged_vectors(self._id_kind, batch.ids, batch.versions, batch.digests, vectors)
        try:
            with raw.cursor() as cursor:
                cursor.copy_expert(_COPY, stream)
        except psycopg2.Error as error:  # SQLAlchemy has no COPY and so does not see its errors
            if raw.closed:
                connection.invalidate()
            raise DBAPIError.instance(
                _COPY, None, error, psycopg2.Error, connection_invalidated=raw.closed != 0
            ) from error

    def _open(self) -> Connection:
        if self._connection is None:
            connection = self._database.engine.connect()
            try:
                with connection.begin():
                    connection.execute(text(_SESSION))
                    connection.execute(self._staging(server_version(connection)))
            except DBAPIError:
                connection.invalidate()
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _staging(self, server: int) -> TextClause:
        id_type = "bigint" if self._id_kind == "integer" else "uuid"
        # Without out-of-line storage there is no second table and index to empty at every commit.
        fits_a_page = self._dimensions <= 1_900
        storage = " STORAGE PLAIN" if fits_a_page and server >= _POSTGRES_16 else ""
        return text(
            f"CREATE TEMPORARY TABLE {_STAGING} (id {id_type}, version xid, digest uuid, "
            f"vector vector({self._dimensions}){storage}) ON COMMIT DELETE ROWS"
        )
