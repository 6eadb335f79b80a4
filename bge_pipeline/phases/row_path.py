"""The path of a row: reader, encoder and writer run together through bounded queues, one pass at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.connection import Database
from bge_pipeline.database.ids import IdKind, IdRange
from bge_pipeline.database.pending_reader import PendingBatch, PendingReader
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import VectorWriter
from bge_pipeline.embedding.encoder import Encoder, TokenizedTexts
from bge_pipeline.errors import DatabaseUnavailable
from bge_pipeline.phases.channel import Abandoned, Channel
from bge_pipeline.phases.pace import Pace
from bge_pipeline.phases.row_encoding import BatchEncoder, EncodedBatch
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.phases.row_writing import BatchWriter, first_line, is_transient
from bge_pipeline.telemetry import metrics
from bge_pipeline.telemetry.meter import Meter
from bge_pipeline.telemetry.tracing import here, span

if TYPE_CHECKING:
    from opentelemetry.context import Context

logger = logging.getLogger(__name__)


class RowPath:
    """Moves pending rows through read, tokenise, encode and write; one instance a pass."""

    def __init__(
        self,
        database: Database,
        target: TargetTable,
        column: Column,
        id_kind: IdKind,
        encoder: Encoder,
        *,
        batch_rows: int,
        max_lock_ms: float,
        max_attempts: int,
        pace: Pace,
        skip_triggers: bool = False,
    ) -> None:
        self._database = database
        self._target = target
        self._column = column
        self._id_kind = id_kind
        self._encoder = encoder
        self._rows = BatchEncoder(encoder)
        self._batch_rows = batch_rows
        self._max_lock_ms = max_lock_ms
        self._max_attempts = max_attempts
        self._pace = pace
        self._skip_triggers = skip_triggers

    @property
    def stopped(self) -> bool:
        """Whether somebody asked for the end."""
        return self._pace.stopped

    def pause(self, seconds: float) -> None:
        """Wait, unless somebody asks for the end."""
        self._pace.sleep(seconds)

    def run(self, id_range: IdRange | None, totals: BackfillTotals, report: Callable[[], None]) -> None:
        """One pass over the pending rows of the range; returns when every vector of it is committed."""
        failures: list[BaseException] = []
        encoders, within = max(1, self._encoder.concurrent_calls), here()
        to_encode: Channel[tuple[PendingBatch, TokenizedTexts | None]] = Channel(encoders + 2, producers=1)
        to_write: Channel[EncodedBatch] = Channel(encoders + 2, producers=encoders)

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
                    target=stage(lambda: self._encode(to_encode, to_write, totals, within), to_write),
                    name=f"backfill-encoder-{n}",
                )
                for n in range(encoders)
            ),
        ]
        with _running(threads, abandon):
            try:
                self._write(to_write, totals, report)
            except Abandoned:
                logger.debug("the writer ended early: another stage failed")
        if failures:
            raise failures[0]

    def _read(
        self,
        id_range: IdRange | None,
        output: Channel[tuple[PendingBatch, TokenizedTexts | None]],
        totals: BackfillTotals,
    ) -> None:
        reader = PendingReader(self._target, self._column.name, self._batch_rows, id_range)
        attempts = 0
        while True:
            try:
                with self._database.autocommit() as connection:
                    while not self.stopped:
                        started = time.perf_counter()
                        batch = reader.read(connection)
                        totals.read_seconds += time.perf_counter() - started
                        wanted = self._pace.claim(len(batch)) if batch is not None else 0
                        if batch is None or not wanted:
                            return
                        batch = batch.only(range(wanted)) if wanted < len(batch) else batch
                        started = time.perf_counter()
                        tokens = self._rows.tokenize(batch)
                        totals.tokenize_seconds += time.perf_counter() - started
                        if tokens is not None:
                            tokens = self._pace.afford(tokens)
                            batch = batch.only(range(len(tokens))) if len(tokens) < len(batch) else batch
                        if not len(batch):
                            return
                        output.put((batch, tokens))
                        if self._pace.spent:
                            return
                        attempts = 0
                return
            except (DatabaseUnavailable, DBAPIError) as error:
                attempts += 1
                if attempts >= self._max_attempts or not is_transient(error):
                    raise
                metrics.RETRIES.labels("read").inc()
                logger.warning("reading failed (%s), attempt %d of %d", first_line(error), attempts, self._max_attempts)
                self.pause(2.0**attempts)

    def _encode(
        self,
        batches: Channel[tuple[PendingBatch, TokenizedTexts | None]],
        output: Channel[EncodedBatch],
        totals: BackfillTotals,
        within: Context | None,
    ) -> None:
        for batch, tokens in batches:
            if self.stopped:
                return  # the batch in hand is written, those that wait here are not
            started = time.perf_counter()
            with span("encode", within=within, rows=len(batch)):
                encoded = self._rows.encode(batch, tokens)
            with totals.encode_lock:
                totals.encode_seconds += time.perf_counter() - started
            output.put(encoded)

    def _write(self, encoded: Channel[EncodedBatch], totals: BackfillTotals, report: Callable[[], None]) -> None:
        dimensions = self._encoder.space.dimensions
        column = self._column
        with VectorWriter(
            self._database,
            self._target,
            column.name,
            column.number,
            self._id_kind,
            dimensions,
            max_lock_ms=self._max_lock_ms,
            max_rows=self._batch_rows,
            skip_triggers=self._skip_triggers,
        ) as vectors:
            rows = BatchWriter(self._database, self._target, vectors, max_attempts=self._max_attempts, pause=self.pause)
            meter = Meter(str(self._target), column.name, totals)
            for item in encoded:
                started, before = time.perf_counter(), totals.written
                with span("write", rows=len(item.batch), tokens=item.tokens) as told:
                    result = rows.write(item, totals.add)
                    told["written"] = totals.written - before
                totals.left_changed += result.left_changed
                totals.quarantined += result.quarantined
                totals.tokens += item.tokens
                totals.truncated += item.truncated
                totals.write_seconds += time.perf_counter() - started
                meter.look()
                report()
                self._pace.between_batches(totals.written - before)


@contextmanager
def _running(threads: Sequence[threading.Thread], abandon: Callable[[], None]) -> Iterator[None]:
    """The threads at work; none outlives the block, whatever ends it."""
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        abandon()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
