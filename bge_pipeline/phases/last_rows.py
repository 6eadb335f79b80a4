"""The last pending rows, embedded while the application's writers, and they alone, wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from contextlib import contextmanager

from psycopg2.errors import QueryCanceled, UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.pending import count_pending
from bge_pipeline.database.pending_reader import PendingBatch, read_pending
from bge_pipeline.database.table_lock import lock_table
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import VectorWriter
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.row_encoding import BatchEncoder, EncodedBatch
from bge_pipeline.phases.row_writing import first_line, is_refusal

_ROWS_AT_ONCE = 32
"""Between two looks at the clock."""
_SHARE_OF_DEADLOCK_TIMEOUT = 0.6
"""The rest is for a busy machine, whose clocks ring late."""
_SHORTEST_WAIT_MS = 20
"""Where the last rows took longer than that share: so short that hardly anybody's wait can end within."""

WITHOUT_WRITERS = "SHARE ROW EXCLUSIVE"
"""The lock that lets nobody write beside its holder."""


class StillPending(SwapRefused):
    """More rows are pending than may be; the only refusal that another round of the backfill can end."""


def lock_out_writers(connection: Connection, target: TargetTable) -> None:
    """Let nobody else write to the table until the transaction ends; readers go on, `SELECT ... FOR UPDATE` too."""
    lock_table(connection, target, WITHOUT_WRITERS)


def longest_wait_ms(connection: Connection, locked_out_at: float, deadline: float, lock_timeout_ms: int) -> int:
    """For how long a transaction that has locked writers out may wait for readers to be gone, in milliseconds.

    A transaction of the application that has read the table, and waits to write it, holds what is waited for: a deadlock, whose
    victim PostgreSQL makes of whoever has waited for `deadlock_timeout` first. That must not be the application.

    Args:
        connection: of the transaction.
        locked_out_at: when writers began to wait, on the clock of `time.monotonic`.
        deadline: when they have waited long enough, on the same clock.
        lock_timeout_ms: LOCK_TIMEOUT_MS.
    """
    deadlock_ms = connection.execute(
        text("SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'")
    ).scalar_one()
    now = time.monotonic()
    before_a_victim = int(_SHARE_OF_DEADLOCK_TIMEOUT * deadlock_ms - (now - locked_out_at) * 1_000)
    left = min(lock_timeout_ms, int((deadline - now) * 1_000), max(before_a_victim, _SHORTEST_WAIT_MS))
    return max(1, left)


@contextmanager
def no_statement_longer_than(connection: Connection, target: TargetTable, pause_ms: int) -> Iterator[None]:
    """Give up, while writers wait, the statement that takes longer than they may wait.

    Raises:
        StillPending: one did.
    """
    before = connection.execute(text("SHOW statement_timeout")).scalar_one()
    connection.execute(text(f"SET LOCAL statement_timeout = {pause_ms}"))
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, QueryCanceled):
            raise
        raise StillPending(
            f"whether rows of {target} are pending, or their last vectors, took longer than writers may wait: {pause_ms} ms "
            "(SWAP_MAX_WRITER_PAUSE_MS)",
            state="nothing was exchanged; search reads the old column",
            next_step="run the same command again when less is written, or with a longer SWAP_MAX_WRITER_PAUSE_MS",
        ) from error
    connection.execute(text(f"SET LOCAL statement_timeout = '{before}'"))


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
        StillPending: it cannot be done by then, or a row cannot be embedded, is locked, or is refused by the application's own
            constraints and triggers.
    """
    pending = count_pending(connection, target, column)
    began = time.monotonic()
    written = done = 0
    for batch in read_pending(connection, target, column, _ROWS_AT_ONCE):
        encoded = _encoded_by(deadline, encoder, batch)
        if encoded is None:
            raise _too_many(target, pending, (time.monotonic() - began) / max(done, 1), deadline - began)
        written += _written(connection, target, writer, encoded)
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


def _written(connection: Connection, target: TargetTable, writer: VectorWriter, encoded: EncodedBatch) -> int:
    try:
        return writer.write_within(connection, encoded.batch, encoded.vectors).rows
    except DBAPIError as error:
        if not is_refusal(error) and not isinstance(error.orig, (UndefinedColumn, UndefinedTable)):
            raise
        raise StillPending(  # another round of the backfill puts the rows at fault aside, or says what the trigger lacks
            f"a constraint or a trigger of {target} refuses the vectors of its last rows: {first_line(error.orig)}",
            state="nothing was exchanged; search reads the old column",
            next_step="correct the constraint or the trigger, then run the same command again: bge-pipeline migrate",
        ) from error


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
        f"{max(0.0, seconds) * 1_000:.0f} ms more (SWAP_MAX_WRITER_PAUSE_MS)",
        state="nothing was exchanged; search reads the old column",
        next_step=f"run the same command again when less is written, or with SWAP_MAX_WRITER_PAUSE_MS={needed * 2_000:.0f}",
    )
