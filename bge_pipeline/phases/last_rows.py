"""The last pending rows, embedded while the application's writers, and they alone, wait."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone

from sqlalchemy import Connection, TextClause

from bge_pipeline.database.pending import count_pending
from bge_pipeline.database.pending_reader import PendingBatch, read_pending
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import VectorWriter
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.row_encoding import BatchEncoder, EncodedBatch

_ROWS_AT_ONCE = 32
"""Between two looks at the clock."""


class StillPending(SwapRefused):
    """More rows are pending than may be; the only refusal that another round of the backfill can end."""


def lock_out_writers(connection: Connection, target: TargetTable) -> None:
    """Let nobody else write to the table until the transaction ends; readers go on, `SELECT ... FOR UPDATE` too."""
    connection.execute(lock_out_writers_statement(target))


def lock_out_writers_statement(target: TargetTable) -> TextClause:
    """The statement that does so."""
    return target.sql("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")


def embed_last_rows(
    connection: Connection, target: TargetTable, column: str, writer: VectorWriter, encoder: Encoder, deadline: float
) -> int:
    """Embed what is pending, in the transaction that locked writers out; returns how many rows those were.

    Args:
        connection: of that transaction.
        target: the table.
        column: the new column, of the encoder's space.
        writer: for that column.
        encoder: makes the vectors.
        deadline: on the clock of `time.monotonic`, when writers have waited long enough.

    Raises:
        StillPending: it cannot be done by then, or a row cannot be embedded or is locked.
    """
    pending = count_pending(connection, target, column)
    began = time.monotonic()
    written = done = 0
    for batch in read_pending(connection, target, column, _ROWS_AT_ONCE):
        encoded = _encoded_by(deadline, encoder, batch)
        if encoded is None:
            raise _too_many(target, pending, (time.monotonic() - began) / max(done, 1), deadline - began)
        written += writer.write_within(connection, encoded.batch, encoded.vectors).rows
        done += len(batch)
        now = time.monotonic()
        if now + (pending - done) * (now - began) / done > deadline:
            raise _too_many(target, pending, (now - began) / done, deadline - began)
    if written < pending:
        raise StillPending(
            f"{pending - written} rows of {target} cannot be embedded at this moment, or are locked by the application",
            state="nothing was exchanged; search reads the old column",
            next_step="run the same command again: bge-pipeline migrate",
        )
    return written


def _encoded_by(deadline: float, encoder: Encoder, batch: PendingBatch) -> EncodedBatch | None:
    """The batch, encoded; None once the deadline has passed, however long the encoder itself may wait, as for an endpoint."""
    rows = BatchEncoder(encoder)
    pool = ThreadPoolExecutor(1, thread_name_prefix="last-rows")
    try:
        return pool.submit(lambda: rows.encode(rows.tokenize(batch))).result(deadline - time.monotonic())
    except NotDone:
        return None
    finally:
        pool.shutdown(wait=False)


def _too_many(target: TargetTable, pending: int, seconds_a_row: float, seconds: float) -> StillPending:
    needed = pending * seconds_a_row
    return StillPending(
        f"{pending} rows of {target} are pending, which take {needed * 1_000:.0f} ms to embed, and writers may wait for "
        f"{seconds * 1_000:.0f} ms (SWAP_MAX_WRITER_PAUSE_MS)",
        state="nothing was exchanged; search reads the old column",
        next_step=f"run the same command again when less is written, or with SWAP_MAX_WRITER_PAUSE_MS={needed * 2_000:.0f}",
    )
