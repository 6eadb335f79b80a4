"""Vectors to rows: every batch is committed, tried again where that can help, and never stopped by a single row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg2.errors import DeadlockDetected, ReadOnlySqlTransaction, SerializationFailure
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
_MANY_ROWS = 50
"""Refused, and none taken: from so many on it is not the rows."""
_HALVING_SECONDS = 5.0
"""For which the rows of a commit are looked for whose triggers wait for a lock of the application."""


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
        self._has_written = False
        self._refused_rows = 0
        self._halving_helps = True

    def write(self, encoded: EncodedBatch, tell: Callable[[Stored], None]) -> Written:
        """Commit what the encoder made of a batch, and `tell` after each commit what it stored.

        Raises:
            PhaseError: the database has refused many rows and taken none, and so would refuse every other.
        """
        refused: list[tuple[PendingBatch, str]] = []
        rows = 0
        for piece in self._vectors.pieces(encoded.batch):
            batch = encoded.batch.only(range(piece.start, piece.stop))
            stored = self._write_rows(batch, encoded.vectors[piece], refused)
            rows += stored.rows
            tell(stored)
        self._has_written |= rows > 0
        if refused and not self._has_written and self._refused_rows + len(refused) >= _MANY_ROWS:
            raise self._refuses_every(refused)
        self._refused_rows += len(refused)
        quarantined = sum(
            self._retrying()(self._quarantine, row, error) for row, error in (*encoded.failures, *refused)
        )
        return Written(len(encoded.batch) - rows - len(refused), quarantined)

    def _refuses_every(self, refused: list[tuple[PendingBatch, str]]) -> PhaseError:
        before = self._refused_rows
        return PhaseError(
            f"{self._target}: the database refuses every vector, of {before + len(refused)} so far: {refused[0][1]}",
            state="every committed batch is kept, "
            + (f"the first {before} of these rows are in quarantine" if before else "no row was quarantined for it"),
            next_step="correct the constraint or the trigger, then run the backfill again; it resumes"
            + ("; bge-pipeline quarantine retry takes up those in quarantine" if before else ""),
        )

    def _write_rows(
        self,
        batch: PendingBatch,
        vectors: NDArray[np.float32],
        refused: list[tuple[PendingBatch, str]],
        halve_until: float | None = None,
    ) -> Stored:
        """Write a batch; halve it until rows stand alone that the application refuses, or whose triggers wait for a lock of it.

        Args:
            batch: n rows.
            vectors: float32 (n, dimensions), in the same order.
            refused: where rows go that are refused, with their errors.
            halve_until: of a part of a batch that gave way, until when it is halved again, on the clock of `time.monotonic`.
        """
        try:
            stored = self._retrying()(self._write_unlocked, batch, vectors, is_part=halve_until is not None)
        except DBAPIError as error:
            if not is_refusal(error):
                raise
            if len(batch) == 1:
                refused.append((batch, f"the database refuses the vector: {first_line(error.orig)}"))
                return Stored(0, 0)
            return self._write_halves(batch, vectors, refused, halve_until)
        if not stored.gave_way:
            self._halving_helps = True
            return stored
        if halve_until is not None:
            is_hopeless = len(batch) == 1 or time.monotonic() > halve_until
            return stored if is_hopeless else self._write_halves(batch, vectors, refused, halve_until)
        if len(batch) == 1 or not self._halving_helps:
            return stored
        # Until anything is written: where all rows wait for one lock, every further batch is to cost one wait.
        self._halving_helps = False
        return self._write_halves(batch, vectors, refused, time.monotonic() + _HALVING_SECONDS)

    def _write_halves(
        self,
        batch: PendingBatch,
        vectors: NDArray[np.float32],
        refused: list[tuple[PendingBatch, str]],
        halve_until: float | None,
    ) -> Stored:
        middle = len(batch) // 2
        first, second = batch.halves()
        stored = self._write_rows(first, vectors[:middle], refused, halve_until)
        return stored + self._write_rows(second, vectors[middle:], refused, halve_until)

    def _write_unlocked(self, batch: PendingBatch, vectors: NDArray[np.float32], *, is_part: bool) -> Stored:
        """Write a batch; while somebody keeps writers off the table, wait with it in hand: its vectors may have been paid for."""
        wait: WaitLog | None = None
        while True:
            try:
                return self._vectors.write(batch, vectors, is_part=is_part)
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
    """Whether another attempt can help: the connection broke, the server ended the transaction to untie a knot, or it takes no
    changes, as in a failover.

    A full disk stays full for as long as a few attempts last.
    """
    if isinstance(error, DatabaseUnavailable):
        return not isinstance(error, LoginRefused)
    if not isinstance(error, DBAPIError) or is_disk_full(error):
        return False
    return (
        error.connection_invalidated
        or isinstance(error, OperationalError)
        or isinstance(error.orig, (SerializationFailure, DeadlockDetected, ReadOnlySqlTransaction))
    )


def first_line(error: BaseException | None) -> str:
    """The beginning of an error's message, or its name where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
