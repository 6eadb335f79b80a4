"""Whether a failed partition is run again, now or later. Only decides; knows no Dagster."""

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST_BACKOFF_SECONDS = 3_600.0
_DAGSTER_RETRIES_WITHIN_SECONDS = 300.0
"""Dagster starts its own retry within seconds. One that has not come by then never will: Dagster cannot retry what
`dagster job execute` ran, though it says so in the run's tags."""


@dataclass(frozen=True)
class Attempt:
    """One run of a partition that did not materialize it.

    Attributes:
        run_id: of the run.
        failed_at: seconds since the epoch; None while the run is queued or under way.
        was_cancelled: somebody stopped it on purpose.
        is_retried_by_dagster: Dagster says that its own run retries will start it again.
        left_pending: rows that waited all through a run that embeds new rows and wrote none; None for any other run.
        has_spent_budget: it ended because it had cost as much as it may.
    """

    run_id: str
    failed_at: float | None
    was_cancelled: bool = False
    is_retried_by_dagster: bool = False
    left_pending: int | None = None
    has_spent_budget: bool = False


@dataclass(frozen=True)
class Rerun:
    """Start the partition now; `run_key` is different after each failure, so that Dagster does not drop it."""

    run_key: str
    attempt: int


@dataclass(frozen=True)
class Wait:
    """Leave the partition alone for now."""

    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Leave the partition to a person."""

    reason: str


Decision = Rerun | Wait | GiveUp


@dataclass(frozen=True)
class RerunPolicy:
    """Runs a failed partition again with exponential backoff, up to a number of attempts.

    Attributes:
        max_attempts: runs of one partition in all, the first included.
        backoff_seconds: wait after the first failure; doubles with each further one, up to an hour.
    """

    max_attempts: int
    backoff_seconds: float

    def decide(self, key: str, attempts: Sequence[Attempt], now: float, *, is_claimed: bool = False) -> Decision:
        """What to do about a partition.

        Args:
            key: the partition.
            attempts: its runs since it was last materialized, oldest first; at least one.
            now: seconds since the epoch.
            is_claimed: a Dagster backfill that is under way will still run it.
        """
        last = attempts[-1]
        failures = sum(not attempt.was_cancelled for attempt in attempts)
        if last.failed_at is None:
            return Wait(f"run {_short(last)} is queued or under way")
        if is_claimed:
            return Wait("a Dagster backfill that is under way includes it")
        if last.is_retried_by_dagster and now - last.failed_at < _DAGSTER_RETRIES_WITHIN_SECONDS:
            return Wait(f"Dagster itself retries run {_short(last)}")
        hopeless = self._why_hopeless(last, failures)
        if hopeless is not None:
            return GiveUp(hopeless)
        left = last.failed_at + self.pause_seconds(failures) - now
        if left > 0:
            return Wait(f"failed {failures} times, next try in {left:.0f} s")
        return Rerun(run_key=f"{key}:{last.run_id}", attempt=failures + 1)

    def pause_seconds(self, failures: int) -> float:
        """How long to wait after that many failures."""
        return min(self.backoff_seconds * 2.0 ** (failures - 1), _LONGEST_BACKOFF_SECONDS)

    def _why_hopeless(self, last: Attempt, failures: int) -> str | None:
        if last.was_cancelled:
            return f"run {_short(last)} was cancelled by somebody; materialize the partition by hand to go on"
        if failures >= self.max_attempts:
            return (
                f"failed {failures} times (MAX_PARTITION_ATTEMPTS={self.max_attempts}), last in run {_short(last)}; "
                "read its log, then materialize the partition by hand"
            )
        return None


def _short(attempt: Attempt) -> str:
    return attempt.run_id[:8]
