"""The companion column: what this project keeps current beside the column that it fills, with that column's own model.

While the next migration of a finished table runs, search reads vectors that this project has to make: a row that the
application writes meanwhile is found only once it has one. After the swap the same column is kept for a rollback.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.pause import read_pause
from bge_pipeline.database.pending import count_pending, has_more_pending_than
from bge_pipeline.database.turn import turn
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.endpoint.address import is_of_endpoint
from bge_pipeline.embedding.loading import is_at_hand, load_encoder_of
from bge_pipeline.errors import BgePipelineError, ModelUnavailable
from bge_pipeline.phases.brakes import make_pace
from bge_pipeline.phases.filling import fill_column
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.phases.row_writing import first_line
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.settings import Settings
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between two looks at the searched column; one is a question to a partial index."""
PATIENCE_SECONDS = 60.0
"""How long the block waits for the looks at its beginning and end: a slow old model must not starve the new one."""
_LONGEST_RUN_SECONDS = 600.0
_LONGEST_PAUSE_SECONDS = 600.0
"""Between two looks after failures; the pause doubles with each."""
_IDLE_LOOKS = 30
"""Looks that found nothing after which the model is released: the new one may want the memory."""


@dataclass(frozen=True)
class CompanionResult:
    """What became of the companion column.

    Attributes:
        column: its name; None where there is none.
        rows: vectors written to it.
        pending: rows that still wait for one.
        is_kept: None without such a column; False with KEEP_OLD_CURRENT=off or where its model is not at hand.
        is_left: another process was at it, and the rows that wait were left to that one.
    """

    column: str | None = None
    rows: int = 0
    pending: int = 0
    is_kept: bool | None = None
    is_left: bool = False

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class CompanionKeeper:
    """Keeps the companion column current while the block works; without such a column it does nothing.

    The searched column comes first: what is pending in it is embedded before the block begins, every LOOK_SECONDS
    meanwhile in a thread beside the block, and at its end. The previous column, which nobody searches, comes at the end
    alone. The block waits for PATIENCE_SECONDS at most, and then for the batch that a model on this machine has in hand; an
    endpoint's is given up. The model is loaded when a row first waits for it. What goes wrong here is logged and tried
    again at the next look; it never stops the block.

    Args:
        migration: among its settings KEEP_OLD_CURRENT, and what a backfill reads.
        stop: when it is set at the end of the block, there is no last look.
        is_throttled: whether MAX_* hold it too, and not a pause alone: the block is no backfill that they hold already.
    """

    def __init__(
        self, migration: Migration, *, stop: threading.Event | None = None, is_throttled: bool = False
    ) -> None:
        self._migration = migration
        self._is_throttled = is_throttled
        self._database = migration.database
        self._settings = migration.settings
        self._target = migration.target
        self._stop = stop if stop is not None else threading.Event()
        self._thread = threading.Thread(target=self._watch, name="companion-keeper")
        self._looked, self._ended, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._totals = BackfillTotals()
        self._encoder: QueryEncoder | None = None
        self._idle_looks = 0
        self._missing: set[str] = set()
        self._failures = 0
        self._is_left = False

    def __enter__(self) -> CompanionKeeper:
        state = self._state_if_known()
        # Where the state is not known now, the looks find it out.
        if self._settings.keep_old_current != "off" and (state is None or (state.companion and state.new)):
            self._thread.start()
            try:
                self._looked.wait(PATIENCE_SECONDS)
            except BaseException:
                self._give_up()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._stop.is_set() and self._has_work(self._state_if_known()):
                self._ended.set()
                if self._thread.ident is None:
                    self._thread.start()
                self._thread.join(PATIENCE_SECONDS)
        finally:
            self._give_up()
        if kind is None and self._failure is not None:
            raise self._failure

    def look(self, stop: threading.Event) -> None:
        """Embed what waits in the companion column now; what prevents it is logged."""
        try:
            self.embed_pending(stop)
            self._failures = 0
        except (BgePipelineError, SQLAlchemyError) as error:
            self._failures += 1
            logger.warning("rows wait for the old model's vector: %s; trying again", first_line(error))

    def embed_pending(self, stop: threading.Event) -> None:
        """Embed what waits in the companion column now.

        Raises:
            BgePipelineError: the model cannot be loaded, fails on every text, or the database does not answer.
        """
        state = self._state()
        column, space = state.companion, _space(state)
        if column is None or space is None or self._settings.keep_old_current == "off":
            return
        if space.fingerprint in self._missing:
            return
        with self._database.autocommit() as connection:
            if read_pause(connection, self._target) is not None:
                return
            is_idle = not has_more_pending_than(connection, self._target.companion, column.name, 0)
        self._idle_looks = self._idle_looks + 1 if is_idle else 0
        if self._idle_looks >= _IDLE_LOOKS:
            self.close()
        if is_idle:
            return
        # Each of a fleet looks, and all would encode the same rows, which an endpoint counts.
        with turn(self._database, self._target, "the old model's vectors") as is_ours:
            self._is_left = not is_ours
            if is_ours:
                self._fill(column, space, stop, is_before_swap=state.new is not None)

    def _fill(self, column: Column, space: EmbeddingSpace, stop: threading.Event, *, is_before_swap: bool) -> None:
        encoder = self._encoder_of(space)
        if encoder is None:
            self._missing.add(space.fingerprint)
            logger.warning("%s", missing_model(space, is_before_swap=is_before_swap))
            return
        pace = make_pace(self._migration, stop, is_throttled=self._is_throttled)
        with pace.running(lambda: None):
            fill_column(
                self._database,
                self._settings,
                self._target.companion,
                column.number,
                encoder,
                totals=self._totals,
                pace=pace,
            )

    def close(self) -> None:
        """Release the model."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    def result(self) -> CompanionResult:
        """What was written so far, and what waits now.

        Raises:
            SQLAlchemyError, BgePipelineError: the database does not answer.
        """
        with self._database.autocommit() as connection:
            state = read_state(connection, self._target)
            if state.companion is None:
                return CompanionResult()
            pending = count_pending(connection, self._target.companion, state.companion.name)
        is_kept = self._settings.keep_old_current != "off" and not self._missing
        return CompanionResult(state.companion.name, self._totals.written, pending, is_kept, self._is_left)

    def result_if_known(self) -> CompanionResult:
        """The same; what prevents it is logged, and nothing but the rows written is told then."""
        try:
            return self.result()
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.warning("how many rows wait for the old model's vector is not known: %s", first_line(error))
            return CompanionResult(rows=self._totals.written)

    def _watch(self) -> None:
        is_last = False
        try:
            while not is_last and not self._abandoned.is_set():
                is_last = self._ended.is_set()
                self.look(self._abandoned)
                self._looked.set()
                self._ended.wait(min(LOOK_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS))
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self._failure = error
        finally:
            self._looked.set()

    def _give_up(self) -> None:
        self._abandoned.set()
        self._ended.set()
        encoder = self._encoder
        if encoder is not None and is_of_endpoint(encoder.space):
            encoder.close()  # it may be silent for minutes
        if self._thread.ident is not None:
            self._thread.join()
        self.close()

    def _has_work(self, state: MigrationState | None) -> bool:
        return self._settings.keep_old_current != "off" and state is not None and state.companion is not None

    def _state_if_known(self) -> MigrationState | None:
        try:
            return self._state()
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.warning("whether rows wait for the old model's vector is not known: %s", first_line(error))
            return None

    def _state(self) -> MigrationState:
        with self._database.autocommit() as connection:
            return read_state(connection, self._target)

    def _encoder_of(self, space: EmbeddingSpace) -> QueryEncoder | None:
        if self._encoder is not None and not self._encoder.space.is_same_as(space):
            self.close()
        if self._encoder is None:
            self._encoder = load_recorded(space, self._settings)
        return self._encoder


def keep_companion(migration: Migration) -> CompanionResult:
    """Embed what waits in the companion column now, and nothing else; for ten minutes at most, since others need the device.

    Raises:
        BgePipelineError: the model cannot be loaded, fails on every text, or the database does not answer.
    """
    keeper, stop = CompanionKeeper(migration, is_throttled=True), threading.Event()
    enough = threading.Timer(_LONGEST_RUN_SECONDS, stop.set)
    enough.start()
    try:
        keeper.embed_pending(stop)
    finally:
        enough.cancel()
        keeper.close()
    return keeper.result()


def count_companion_pending(migration: Migration) -> int:
    """Rows that wait for a vector in the companion column; 0 without one."""
    target = migration.target
    with migration.database.autocommit() as connection:
        column = read_state(connection, target).companion
        return count_pending(connection, target.companion, column.name) if column is not None else 0


def can_be_kept(space: EmbeddingSpace, settings: Settings) -> bool:
    """Whether the companion column, of that space, is to be kept current and can be here."""
    return settings.keep_old_current == "auto" and is_at_hand(space, settings)


def missing_model(space: EmbeddingSpace, *, is_before_swap: bool) -> str:
    """What it means that the companion column's model is not at hand, or KEEP_OLD_CURRENT is off."""
    meanwhile = (
        "search does not find what the application writes until the swap"
        if is_before_swap
        else "a rollback would leave without a vector what the application has written since the swap"
    )
    return f"the model of the old vectors, {space}, is not at hand here or KEEP_OLD_CURRENT is off: {meanwhile}"


def _space(state: MigrationState) -> EmbeddingSpace | None:
    return space_of(state.companion) if state.companion is not None else None


def load_recorded(space: EmbeddingSpace, settings: Settings) -> QueryEncoder | None:
    """The encoder of a recorded space, on the CPU where the device has no memory left for a second model.

    Returns None where the model is not at hand.

    Raises:
        ModelUnavailable: it is, and cannot be loaded.
    """
    try:
        return load_encoder_of(space, settings)
    except Exception as error:
        if settings.embedding_device != "cpu" and _is_out_of_memory(error):
            logger.warning("no memory on the device for a second model; the old one runs on the CPU")
            return load_recorded(space, settings.model_copy(update={"embedding_device": "cpu"}))
        if isinstance(error, BgePipelineError):
            raise
        raise ModelUnavailable(f"{space.model} cannot be loaded: {first_line(error)}") from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        from bge_pipeline.embedding.memory import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)
