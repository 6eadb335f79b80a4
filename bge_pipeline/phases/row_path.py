"""The path of a row: reader, encoder and writer run together through bounded queues, one pass at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.errors import DeadlockDetected, SerializationFailure
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from bge_pipeline.database.catalog import IdKind
from bge_pipeline.database.connection import Database
from bge_pipeline.database.quarantine import quarantine_row
from bge_pipeline.database.ranges import IdRange
from bge_pipeline.database.reader import PendingBatch, read_pending
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import VectorWriter
from bge_pipeline.embedding.encoder import Encoder, TokenizedTexts
from bge_pipeline.errors import BgePipelineError, DatabaseUnavailable, EncodingError
from bge_pipeline.phases.channel import Abandoned, Channel

logger = logging.getLogger(__name__)

_PROBE = "The quick brown fox jumps over the lazy dog."
_UNIT_LENGTH_TOLERANCE = 0.01
"""Wide enough for fp16 and int8 arithmetic, far too narrow for a model that does not normalise."""


@dataclass
class PassTotals:
    """Sums over all passes; each field is written by one stage alone."""

    written: int = 0
    left_changed: int = 0
    quarantined: int = 0
    truncated: int = 0
    tokens: int = 0
    read_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    encode_lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Encoded:
    """What a batch became: vectors for `batch`, and rows that could not be embedded with their error."""

    batch: PendingBatch
    vectors: NDArray[np.float32]
    tokens: int
    truncated: int
    failures: list[tuple[PendingBatch, str]]


class RowPath:
    """Moves pending rows through read, tokenise, encode and write; one instance a backfill."""

    def __init__(
        self,
        database: Database,
        target: TargetTable,
        column: str,
        id_kind: IdKind,
        encoder: Encoder,
        *,
        batch_rows: int,
        max_attempts: int,
        stop: threading.Event,
    ) -> None:
        self._database = database
        self._target = target
        self._column = column
        self._id_kind = id_kind
        self._encoder = encoder
        self._batch_rows = batch_rows
        self._max_attempts = max_attempts
        self._stop = stop

    @property
    def stopped(self) -> bool:
        """Whether somebody asked for the end."""
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, unless somebody asks for the end."""
        self._stop.wait(seconds)

    def run(self, id_range: IdRange | None, totals: PassTotals, report: Callable[[], None]) -> None:
        """One pass over the pending rows of the range; returns when every vector of it is committed."""
        failures: list[BaseException] = []
        encoders = max(1, self._encoder.concurrent_calls)
        to_encode: Channel[tuple[PendingBatch, TokenizedTexts | None]] = Channel(encoders + 2, producers=1)
        to_write: Channel[_Encoded] = Channel(encoders + 2, producers=encoders)

        def abandon() -> None:
            to_encode.abandon()
            to_write.abandon()

        def stage(work: Callable[[], None], output: Channel[Any]) -> Callable[[], None]:
            def body() -> None:
                try:
                    work()
                except Abandoned:
                    logger.debug("a stage ended early: the pass was given up")
                except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
                    failures.append(error)
                    abandon()
                finally:
                    output.close()

            return body

        threads = [
            threading.Thread(
                target=stage(lambda: self._read(id_range, to_encode, totals), to_encode), name="backfill-reader"
            ),
            *(
                threading.Thread(
                    target=stage(lambda: self._encode(to_encode, to_write, totals), to_write),
                    name=f"backfill-encoder-{n}",
                )
                for n in range(encoders)
            ),
        ]
        for thread in threads:
            thread.start()
        try:
            self._write(to_write, totals, report)
        except Abandoned:
            logger.debug("the writer ended early: another stage failed")
        finally:
            abandon()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]

    def _read(
        self, id_range: IdRange | None, output: Channel[tuple[PendingBatch, TokenizedTexts | None]], totals: PassTotals
    ) -> None:
        last_id: Any = None
        attempts = 0
        while True:
            try:
                with self._database.autocommit() as connection:
                    batches = read_pending(
                        connection, self._target, self._column, self._batch_rows, id_range, after=last_id
                    )
                    for batch in _timed(batches, totals):
                        if self.stopped:
                            return
                        started = time.perf_counter()
                        tokens = self._tokenize(batch)
                        totals.tokenize_seconds += time.perf_counter() - started
                        output.put((batch, tokens))
                        last_id, attempts = batch.ids[-1], 0
                return
            except (DatabaseUnavailable, DBAPIError) as error:
                attempts += 1
                if attempts >= self._max_attempts or not _is_transient(error):
                    raise
                logger.warning(
                    "reading failed (%s), attempt %d of %d", _first_line(error), attempts, self._max_attempts
                )
                self.pause(2.0**attempts)

    def _tokenize(self, batch: PendingBatch) -> TokenizedTexts | None:
        """Tokens of the batch; None where a text of it cannot be tokenised, which `_encode_rows` then finds."""
        try:
            return self._encoder.tokenize(batch.texts)
        except Exception:
            logger.debug("a text of the batch cannot be tokenised", exc_info=True)
            return None

    def _encode(
        self,
        batches: Channel[tuple[PendingBatch, TokenizedTexts | None]],
        output: Channel[_Encoded],
        totals: PassTotals,
    ) -> None:
        for batch, tokens in batches:
            started = time.perf_counter()
            encoded = self._encode_rows(batch, tokens)
            with totals.encode_lock:
                totals.encode_seconds += time.perf_counter() - started
            output.put(encoded)

    def _encode_rows(self, batch: PendingBatch, tokens: TokenizedTexts | None) -> _Encoded:
        """Encode a batch; if that fails, halve it until the rows at fault stand alone."""
        try:
            tokens = tokens if tokens is not None else self._encoder.tokenize(batch.texts)
            vectors = self._encoder.encode(tokens)
        except BgePipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - any library may sit behind an encoder; the rows are told apart below
            if len(batch) == 1:
                return self._give_up(batch, error)
            logger.info("a batch of %d rows failed (%s); halving it", len(batch), _first_line(error))
            middle = len(batch) // 2
            first = self._encode_rows(batch.only(range(middle)), None)
            second = self._encode_rows(batch.only(range(middle, len(batch))), None)
            return _joined(first, second)
        return self._checked(batch, tokens, vectors)

    def _checked(self, batch: PendingBatch, tokens: TokenizedTexts, vectors: NDArray[np.float32]) -> _Encoded:
        """Keep vectors that are finite and of unit length; a zero or a NaN would be found by no search."""
        expected = (len(batch), self._encoder.space.dimensions)
        if vectors.shape != expected:
            raise EncodingError(f"the encoder returned an array of shape {vectors.shape}: expected {expected}")
        lengths = np.linalg.norm(vectors, axis=1)
        sound = np.abs(lengths - 1.0) <= _UNIT_LENGTH_TOLERANCE
        if sound.all():
            return _Encoded(batch, vectors, int(tokens.token_counts.sum()), int(tokens.truncated.sum()), [])
        if not sound.any():
            self._require_working_encoder(None)
        failures = [
            (batch.only([i]), f"the encoder returned a vector of length {lengths[i]:.3f}: expected 1")
            for i in np.flatnonzero(~sound).tolist()
        ]
        kept = np.flatnonzero(sound)
        return _Encoded(
            batch.only(kept.tolist()),
            vectors[kept],
            int(tokens.token_counts[kept].sum()),
            int(tokens.truncated[kept].sum()),
            failures,
        )

    def _give_up(self, batch: PendingBatch, error: Exception) -> _Encoded:
        self._require_working_encoder(error)
        nothing = np.empty((0, self._encoder.space.dimensions), np.float32)
        return _Encoded(batch.only([]), nothing, 0, 0, [(batch, f"{type(error).__name__}: {error}")])

    def _require_working_encoder(self, cause: Exception | None) -> None:
        """Tell a bad text from a broken encoder: an encoder that fails on a plain sentence is broken."""
        try:
            vector = self._encoder.encode(self._encoder.tokenize([_PROBE]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the encoder does not work
            raise self._broken(_first_line(error)) from (cause or error)
        length = float(np.linalg.norm(vector))
        if abs(length - 1.0) > _UNIT_LENGTH_TOLERANCE:
            raise self._broken(f"it returns vectors of length {length:.3f}: expected 1") from cause

    def _broken(self, reason: str) -> EncodingError:
        return EncodingError(
            f"the encoder {self._encoder.space.model} fails on a plain sentence: {reason}",
            state="every committed batch is kept, no row was quarantined for it",
            next_step="correct the model or the device, then run the backfill again; it resumes",
        )

    def _write(self, encoded: Channel[_Encoded], totals: PassTotals, report: Callable[[], None]) -> None:
        dimensions = self._encoder.space.dimensions
        with VectorWriter(self._database, self._target, self._column, self._id_kind, dimensions) as writer:
            for item in encoded:
                started = time.perf_counter()
                if len(item.batch):
                    written = self._retrying()(writer.write, item.batch, item.vectors)
                    totals.written += written
                    totals.left_changed += len(item.batch) - written
                for batch, error in item.failures:
                    totals.quarantined += self._retrying()(self._quarantine, batch, error)
                totals.tokens += item.tokens
                totals.truncated += item.truncated
                totals.write_seconds += time.perf_counter() - started
                report()

    def _quarantine(self, batch: PendingBatch, error: str) -> bool:
        logger.warning("row %s cannot be embedded and is put in quarantine: %s", batch.ids[0], error)
        with self._database.transaction() as connection:
            return quarantine_row(connection, self._target, batch, 0, error)

    def _retrying(self) -> Retrying:
        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            logger.warning(
                "writing failed (%s), attempt %d of %d", _first_line(error), state.attempt_number, self._max_attempts
            )

        return Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_attempt(self._max_attempts),
            wait=wait_exponential(multiplier=1, max=30),
            before_sleep=report,
            reraise=True,
        )


def _joined(first: _Encoded, second: _Encoded) -> _Encoded:
    batch = PendingBatch(
        [*first.batch.ids, *second.batch.ids],
        [*first.batch.versions, *second.batch.versions],
        [*first.batch.texts, *second.batch.texts],
    )
    return _Encoded(
        batch,
        np.concatenate([first.vectors, second.vectors]),
        first.tokens + second.tokens,
        first.truncated + second.truncated,
        first.failures + second.failures,
    )


def _timed(batches: Iterator[PendingBatch], totals: PassTotals) -> Iterator[PendingBatch]:
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        totals.read_seconds += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt can help: the connection broke, or the server ended the transaction to untie a knot."""
    if isinstance(error, DatabaseUnavailable):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return (
        error.connection_invalidated
        or isinstance(error, OperationalError)
        or isinstance(error.orig, (SerializationFailure, DeadlockDetected))
    )


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
