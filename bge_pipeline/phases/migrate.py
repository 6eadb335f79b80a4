"""Migrate: the phases in order, from wherever the table stands, and the services they need."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import BackfillProgress, BackfillResult, backfill
from bge_pipeline.phases.ending import require_whole
from bge_pipeline.phases.expand import ExpandResult, expand
from bge_pipeline.phases.last_rows import StillPending
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.swap import SwapResult, swap
from bge_pipeline.phases.telling import untold
from bge_pipeline.phases.until import Until, rows_until
from bge_pipeline.telemetry.serving import serving_metrics

logger = logging.getLogger(__name__)

_CALIBRATION_TEXTS = 512
_CATCH_UP_ROUNDS = 3
"""Rounds of embedding what the application wrote meanwhile before the swap gives up."""


@dataclass(frozen=True)
class MigrateResult:
    """What each phase did; `swap` is None where the backfill was to go so far and no farther."""

    expand: ExpandResult
    backfill: BackfillResult
    swap: SwapResult | None

    def as_metadata(self) -> dict[str, Any]:
        """Plain values, one object a phase."""
        return {
            "expand": self.expand.as_metadata(),
            "backfill": self.backfill.as_metadata(),
            "swap": self.swap.as_metadata() if self.swap is not None else None,
        }


@contextmanager
def open_service(migration: Migration) -> Iterator[EmbeddingsService]:
    """The embeddings service, quantised on texts of the target table where int8 is asked for; shut down at the end.

    While it is open, the process serves its metrics, where METRICS_PORT asks for it.
    """
    settings = migration.settings

    def texts() -> list[str]:
        with migration.database.autocommit() as connection:
            return sample_texts(connection, migration.target, _CALIBRATION_TEXTS)

    with serving_metrics(settings.metrics_host, settings.metrics_port, settings.home):
        service = EmbeddingsService.from_settings(settings, calibration_texts=texts)
        try:
            yield service
        finally:
            service.shutdown()


def migrate(
    migration: Migration,
    service: EmbeddingsService,
    *,
    on_backfill: Callable[[BackfillProgress], None] | None = None,
    on_index: Callable[[BuildProgress], None] | None = None,
    on_step: Callable[[str], None] = untold,
    until: Until | None = None,
    stop: threading.Event | None = None,
) -> MigrateResult:
    """Expand, backfill and swap, each from where it was left; running it again when all is done changes nothing.

    Args:
        migration: of the table, with the settings of every phase.
        service: the new model.
        on_backfill: told how far the backfill is.
        on_index: told how far the index build is.
        on_step: told what begins, in a word or two.
        until: where the backfill is to end, without a swap; None: when all is done.
        stop: set it to end after the batch in hand.

    Raises:
        Stopped: `stop` was set; or (BudgetSpent) the budget is spent.
        OperatorBusy: another process migrates, rolls back or retires the table now.
        ConsentRequired: it would begin the next migration or go forward after a rollback; the settings can say yes.
        BgePipelineError: whatever a phase raises; what was committed stays, and another call resumes.
    """
    with migration.operating("migrate"):
        on_step("expand")
        expanded = expand(migration, service.space)
        on_step("backfill")
        goal = rows_until(migration, until)
        filled = backfill(migration, service.encoder, on_progress=on_backfill, stop=stop, goal_rows=goal)
        require_whole(filled, stop, "bge-pipeline migrate resumes")
        if until is not None:
            return MigrateResult(expanded, filled, None)
        return MigrateResult(
            expanded, filled, catch_up_and_swap(migration, service, on_index=on_index, on_step=on_step)
        )


def catch_up_and_swap(
    migration: Migration,
    service: EmbeddingsService,
    *,
    on_index: Callable[[BuildProgress], None] | None = None,
    on_step: Callable[[str], None] = untold,
) -> SwapResult:
    """Swap, and embed before another attempt what the application has written since the backfill, be it days ago.

    Raises:
        StillPending: more than a few rows are pending again and again.
        BgePipelineError: whatever the phases raise.
    """
    attempt = 1
    while True:
        try:
            return swap(migration, service, on_progress=on_index, on_step=on_step)
        except StillPending as refusal:
            if attempt == _CATCH_UP_ROUNDS:
                raise
            logger.info("%s; embedding them, round %d of %d", refusal.message, attempt, _CATCH_UP_ROUNDS)
        on_step("backfill")
        require_whole(backfill(migration, service.encoder), None, "the same command resumes")
        attempt += 1
