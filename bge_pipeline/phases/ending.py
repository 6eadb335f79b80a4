"""How a backfill ended: whole, or early because somebody asked for it or its budget is spent."""

from __future__ import annotations

import threading

from bge_pipeline.errors import BudgetSpent, Stopped
from bge_pipeline.phases.backfill import BackfillResult


def require_whole(result: BackfillResult, stop: threading.Event | None, next_step: str) -> None:
    """Pass a backfill that went as far as it was to go.

    Args:
        result: what it did.
        stop: what ended it, if it is set.
        next_step: the command that goes on.

    Raises:
        Stopped: somebody asked for the end; or (BudgetSpent) the budget ended it.
    """
    if stop is not None and stop.is_set():
        raise _stopped(result, next_step)
    if result.spent is not None:
        raise BudgetSpent(
            f"{result.spent} is spent: {result.rows:,} rows were embedded in this run with {result.tokens:,} tokens, "
            f"{result.pending_after:,} wait",
            state="every vector that was paid for is committed",
            next_step=f"{next_step}, with a budget of its own",
        )


def _stopped(result: BackfillResult, next_step: str) -> Stopped:
    return Stopped(
        f"stopped after the batch in hand, as asked: {result.rows:,} rows were embedded in this run, "
        f"{result.pending_after:,} wait",
        state="every committed batch is kept",
        next_step=next_step,
    )
