"""Vectors to rows: every batch is committed, tried again where that can help, and never stopped by a single row."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg2.errors import DeadlockDetected, SerializationFailure
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from bge_pipeline.database.connection import Database, is_disk_full
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.lock_holders import WaitLog
from bge_pipeline.database.pending_reader import PendingBatch
from bge_pipeline.database.quarantine import quarantine_row
from bge_pipeline.database.writer import Destination, Stored, TableLocked, VectorWriter
from bge_pipeline.errors import DatabaseUnavailable, LoginRefused, PhaseError
from bge_pipeline.phases.row_encoding import EncodedBatch
from bge_pipeline.phases.state import with_quarantine_of
from bge_pipeline.telemetry import metrics

logger = logging.getLogger(__name__)

_REFUSALS = ("22", "23", "44", "P0")
"""Classes of SQLSTATE by which a constraint or a trigger of the application refuses a row: data exception, integrity
constraint violation, WITH CHECK OPTION violation, RAISE in PL/pgSQL."""


@dataclass(frozen=True)
class Written:
    """Rows of one batch by what became of those that were not stored."""

    left_changed: int
    quarantined: int


class BatchWriter:
    """Writes encoded batches, and puts rows aside that cannot be embedded or that the database refuses."""

    def __init__(
        self,
        database: Database,
        destination: Destination,
        vectors: VectorWriter,
        *,
        max_attempts: int,
        pause: Callable[[float], None],
        hold: Callable[[str, str], bool],
    ) -> None:
        self._database = database
        self._target = destination.target
        self._number = destination.number
        self._vectors = vectors
        self._max_attempts = max_attempts
        self._pause = pause
        self._hold = hold

    def write(self, encoded: EncodedBatch, tell: Callable[[Stored], None]) -> Written:
        """Commit what the encoder made of a batch, and `tell` after each commit what it stored.

        Raises:
            PhaseError: the database refuses every row of the batch, and so would every other.
        """
        refused: list[tuple[PendingBatch, str]] = []
        rows = 0
        for piece in self._vectors.pieces(encoded.batch):
            batch = encoded.batch.only(range(piece.start, piece.stop))
            stored = self._write_rows(batch, encoded.vectors[piece], refused)
            rows += stored.rows
            tell(stored)
        if len(refused) == len(encoded.batch) > 1:
            raise PhaseError(
                f"{self._target}: the database refuses every vector of a batch of {len(refused)}: {refused[0][1]}",
                state="every committed batch is kept, no row was quarantined for it",
                next_step="correct the constraint or the trigger, then run the backfill again; it resumes",
            )
        quarantined = sum(
            self._retrying()(self._quarantine, row, error) for row, error in (*encoded.failures, *refused)
        )
        return Written(len(encoded.batch) - rows - len(refused), quarantined)

    def _write_rows(
        self, batch: PendingBatch, vectors: NDArray[np.float32], refused: list[tuple[PendingBatch, str]]
    ) -> Stored:
        """Write a batch; if a constraint or a trigger refuses it, halve it until the rows at fault stand alone."""
        try:
            return self._retrying()(self._write_unlocked, batch, vectors)
        except DBAPIError as error:
            if not is_refusal(error):
                raise
            if len(batch) == 1:
                refused.append((batch, f"the database refuses the vector: {first_line(error.orig)}"))
                return Stored(0, 0)
        middle = len(batch) // 2
        first, second = batch.halves()
        return self._write_rows(first, vectors[:middle], refused) + self._write_rows(second, vectors[middle:], refused)

    def _write_unlocked(self, batch: PendingBatch, vectors: NDArray[np.float32]) -> Stored:
        """Write a batch; while somebody keeps writers off the table, wait with it in hand: its vectors may have been paid for."""
        wait: WaitLog | None = None
        while True:
            try:
                return self._vectors.write(batch, vectors)
            except TableLocked as locked:
                wait = wait or WaitLog(f"{locked.table} is locked, its vectors are kept", level=logging.WARNING)
                wait(locked.holders)
                if not self._hold("locked", str(locked)):
                    logger.warning("%s; %d rows that were embedded stay pending", locked, len(batch))
                    return Stored(0, 0)

    def _quarantine(self, row: PendingBatch, error: str) -> bool:
        logger.warning("row %s cannot be embedded and is put in quarantine: %s", id_as_text(row.ids[0]), error)
        with self._database.transaction() as connection:
            target = with_quarantine_of(connection, self._target, self._number)
            return quarantine_row(connection, target, row, 0, error)

    def _retrying(self) -> Retrying:
        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            metrics.RETRIES.labels("write").inc()
            logger.warning(
                "writing failed (%s), attempt %d of %d", first_line(error), state.attempt_number, self._max_attempts
            )

        return Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_after_attempt(self._max_attempts),
            wait=wait_exponential(multiplier=1, max=30),
            sleep=self._pause,
            before_sleep=report,
            reraise=True,
        )


def is_refusal(error: DBAPIError) -> bool:
    """Whether a constraint or a trigger of the application refuses a row."""
    return str(getattr(error.orig, "pgcode", None)).startswith(_REFUSALS)


def is_transient(error: BaseException) -> bool:
    """Whether another attempt can help: the connection broke, or the server ended the transaction to untie a knot.

    A full disk stays full for as long as a few attempts last.
    """
    if isinstance(error, DatabaseUnavailable):
        return not isinstance(error, LoginRefused)
    if not isinstance(error, DBAPIError) or is_disk_full(error):
        return False
    return (
        error.connection_invalidated
        or isinstance(error, OperationalError)
        or isinstance(error.orig, (SerializationFailure, DeadlockDetected))
    )


def first_line(error: BaseException | None) -> str:
    """The beginning of an error's message, or its name where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
