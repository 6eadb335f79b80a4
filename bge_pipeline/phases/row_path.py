"""The path of a row: reader, encoder and writer run together through bounded queues, one pass at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.pending_reader import PendingBatch, PendingReader
from bge_pipeline.database.writer import CommitRules, Destination, VectorWriter
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import DatabaseUnavailable, Stopped
from bge_pipeline.phases.channel import Abandoned, Channel
from bge_pipeline.phases.pace import Pace
from bge_pipeline.phases.readable import read_when_unlocked, waiting_briefly
from bge_pipeline.phases.row_encoding import BatchEncoder, EncodedBatch, TokenizedBatch, UntokenizableBatch
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
        destination: Destination,
        encoder: Encoder,
        rules: CommitRules,
        pace: Pace,
        *,
        max_attempts: int,
    ) -> None:
        self._database = database
        self._destination = destination
        self._encoder = encoder
        self._rows = BatchEncoder(encoder)
        self._rules = rules
        self._pace = pace
        self._max_attempts = max_attempts
        self._abandoned = threading.Event()

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
        to_encode: Channel[TokenizedBatch | UntokenizableBatch] = Channel(encoders + 2, producers=1)
        to_write: Channel[EncodedBatch] = Channel(encoders + 2, producers=encoders)

        def abandon() -> None:
            self._abandoned.set()
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
        self, id_range: IdRange | None, output: Channel[TokenizedBatch | UntokenizableBatch], totals: BackfillTotals
    ) -> None:
        """Read and tokenise in one thread: a batch is tokenised while the encoder has the one before."""
        with closing(self._pending_batches(id_range, totals)) as batches:
            for batch in batches:
                started = time.perf_counter()
                tokenized = self._rows.tokenize(batch)
                totals.tokenize_seconds += time.perf_counter() - started
                if isinstance(tokenized, TokenizedBatch):
                    tokenized = self._afforded(tokenized)
                if not len(tokenized.batch):
                    return
                output.put(tokenized)
                if self._pace.spent:
                    return

    def _afforded(self, tokenized: TokenizedBatch) -> TokenizedBatch:
        tokens = self._pace.afford(tokenized.tokens)
        return TokenizedBatch(tokenized.batch.only(range(len(tokens))), tokens)

    def _pending_batches(self, id_range: IdRange | None, totals: BackfillTotals) -> Generator[PendingBatch]:
        """The pending rows of the range in batches, each as many as the pace wants; read again where the server went away."""
        reader = PendingReader(self._destination.target, self._destination.column, self._rules.max_rows, id_range)
        attempts = 0
        while True:
            try:
                with waiting_briefly(self._database) as connection:
                    while not self.stopped:
                        started = time.perf_counter()
                        batch = read_when_unlocked(
                            self._database,
                            connection,
                            self._destination.target,
                            self._hold_reader,
                            partial(reader.read, connection),
                        )
                        totals.read_seconds += time.perf_counter() - started
                        wanted = self._pace.claim(len(batch)) if batch is not None else 0
                        if batch is None or not wanted:
                            return
                        yield batch.only(range(wanted)) if wanted < len(batch) else batch
                        attempts = 0
                return
            except Stopped as stopped:
                logger.debug("the reader ended early: %s", stopped)
                return
            except (DatabaseUnavailable, DBAPIError) as error:
                attempts += 1
                if attempts >= self._max_attempts or not is_transient(error):
                    raise
                metrics.RETRIES.labels("read").inc()
                logger.warning("reading failed (%s), attempt %d of %d", first_line(error), attempts, self._max_attempts)
                self.pause(2.0**attempts)

    def _hold_reader(self, reason: str, words: str) -> bool:
        is_wanted = not self._abandoned.is_set() and self._pace.hold(reason, words)
        return is_wanted and not self._abandoned.is_set()

    def _encode(
        self,
        batches: Channel[TokenizedBatch | UntokenizableBatch],
        output: Channel[EncodedBatch],
        totals: BackfillTotals,
        within: Context | None,
    ) -> None:
        for batch in batches:
            if self.stopped:
                return  # the batch in hand is written, those that wait here are not
            started = time.perf_counter()
            with span("encode", within=within, rows=len(batch.batch)):
                encoded = self._rows.encode(batch)
            with totals.encode_lock:
                totals.encode_seconds += time.perf_counter() - started
            output.put(encoded)

    def _write(self, encoded: Channel[EncodedBatch], totals: BackfillTotals, report: Callable[[], None]) -> None:
        meter = Meter(str(self._destination.target), self._destination.column, totals)
        with meter, VectorWriter(self._database, self._destination, self._rules) as vectors:
            rows = BatchWriter(
                self._database,
                self._destination,
                vectors,
                max_attempts=self._max_attempts,
                pause=self.pause,
                hold=self._pace.hold,
            )
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
