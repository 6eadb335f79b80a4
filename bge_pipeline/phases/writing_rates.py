"""How fast vectors can be written: measured on a temporary copy of some rows with the indexes that the table has."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import numpy as np
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.commit_size import CommitSize
from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import Index, definition_on
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.sampling import sample_percent
from bge_pipeline.database.storage import tuple_target_for, tuple_target_statement
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.database.writer import CommitRules, Destination, Stored, VectorWriter
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_COPY = "bge_pipeline_rehearsal"
_NEW = "bge_pipeline_new"
_ROWS = 4_000
_ROWS_WITH_GRAPH = 1_500
"""An index other than IVFFlat takes seconds for as many."""


@dataclass(frozen=True)
class WritingRates:
    """Rows a second into the column, measured on `rows` rows, and the share of updates that stayed in their page.

    Attributes:
        dropped: with the old vector index gone.
        kept: with it there; the same where there is none.
        in_page: share of rows, with the index kept, of which no index heard.
    """

    rows: int
    dropped: float
    kept: float
    in_page: float


@dataclass(frozen=True)
class _Filled:
    rows: int
    in_page: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def measure_writing(
    migration: Migration, table: TableDescription, old_indexes: list[Index], dimensions: int
) -> WritingRates | None:
    """Rates on this server; None where there are no rows, or no temporary table may be made.

    The copy is the session's own and gone with it; no WAL is written for it, which a standby or slow disk may add to.
    """
    rows = _ROWS if all(index.method == "ivfflat" for index in old_indexes) else _ROWS_WITH_GRAPH
    try:
        with migration.database.engine.connect() as connection:
            try:
                _copy(connection, table, rows, VectorType(migration.settings.target_vector_type, dimensions))
                without = _fill(connection, migration.database, migration.settings, table, dimensions)
                if not without.rows:
                    return None
                kept = without
                if old_indexes:
                    _empty_and_index(connection, table, old_indexes)
                    kept = _fill(connection, migration.database, migration.settings, table, dimensions)
                return WritingRates(without.rows, without.rate, kept.rate, kept.in_page / kept.rows)
            finally:
                connection.invalidate()
    except DBAPIError as error:
        level = logging.INFO if isinstance(error.orig, InsufficientPrivilege) else logging.WARNING
        logger.log(level, "how fast vectors are written could not be measured: %s", str(error.orig).strip())
        return None


def _copy(connection: Connection, table: TableDescription, rows: int, vector: VectorType) -> None:
    """The temporary copy, with an empty column, as expand makes it."""
    target, copy = table.target, _copy_of(table.target)
    with connection.begin():
        percent = sample_percent(connection, target, rows)
        make = target.sql(
            "CREATE TEMPORARY TABLE {copy} AS SELECT * FROM {table} TABLESAMPLE SYSTEM (:percent) "
            "WHERE {in_part} LIMIT :rows",
            copy=_COPY,
        )
        connection.execute(make, {"percent": percent, "rows": rows})
        connection.execute(copy.sql(f"ALTER TABLE {{table}} ADD COLUMN {{new}} {vector}", new=_NEW))
        connection.execute(tuple_target_statement(copy, tuple_target_for(vector)))
        connection.execute(copy.sql("CREATE UNIQUE INDEX ON {table} ({ids})"))


def _empty_and_index(connection: Connection, table: TableDescription, indexes: list[Index]) -> None:
    """The copy as it was, with the vector indexes of the table."""
    copy = _copy_of(table.target)
    with connection.begin():
        connection.execute(copy.sql("CREATE TEMPORARY TABLE {kept} AS SELECT * FROM {table}", kept=f"{_COPY}_kept"))
        connection.execute(copy.sql("TRUNCATE {table}"))
        connection.execute(copy.sql("UPDATE {kept} SET {new} = NULL", kept=f"{_COPY}_kept", new=_NEW))
        connection.execute(copy.sql("INSERT INTO {table} SELECT * FROM {kept}", kept=f"{_COPY}_kept"))
        for index in indexes:
            body = definition_on(index.definition, table.embedding.name, table.embedding.name).partition(" USING ")[2]
            connection.execute(text(f"CREATE INDEX ON {copy} USING {body}".replace(":", "\\:")))


def _fill(
    connection: Connection, database: Database, settings: Settings, table: TableDescription, dimensions: int
) -> _Filled:
    """Write random vectors as a backfill does."""
    copy = _copy_of(table.target)
    with connection.begin():
        number = connection.execute(
            text("SELECT attnum FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) AND attname = :name"),
            {"table": str(copy), "name": _NEW},
        ).scalar_one()
        batches = list(read_pending(connection, copy, _NEW, settings.backfill_batch_rows))
    size = CommitSize(settings.backfill_max_lock_ms, settings.backfill_batch_rows)
    rules = CommitRules(settings.backfill_max_lock_ms, settings.backfill_batch_rows)
    writer = VectorWriter(database, Destination(copy, _NEW, number, table.id_kind, dimensions), rules)
    stored = Stored(0, 0)
    vectors = np.random.default_rng(0).standard_normal((settings.backfill_batch_rows, dimensions), dtype=np.float32)
    began = time.perf_counter()
    for batch in batches:
        for piece in size.pieces(batch):
            part = batch.only(range(piece.start, piece.stop))
            started = time.perf_counter()
            with connection.begin():
                stored += writer.write_within(connection, part, vectors[piece])
            size.held(len(part), time.perf_counter() - started)
    return _Filled(stored.rows, stored.in_page, time.perf_counter() - began)


def _copy_of(target: TargetTable) -> TargetTable:
    return replace(target, schema="pg_temp", table=_COPY)
