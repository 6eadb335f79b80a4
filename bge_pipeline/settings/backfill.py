"""The backfill: how rows are written, and what may hold it back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bge_pipeline.settings.group import Group


class BackfillSettings(Group):
    """How rows are written, and what may hold a backfill back."""

    backfill_batch_rows: int = Field(
        1_000, ge=1, le=100_000, description="rows that are read and encoded together, and most rows in one commit"
    )
    backfill_max_lock_ms: float = Field(
        50, gt=0, description="for how long a commit may hold the locks of its rows; commits get smaller to keep to it"
    )
    backfill_wait_for_snapshots: float = Field(
        0,
        ge=0,
        description="seconds that a backfill waits, in all, for old transactions that keep the table's pages full; 0: it goes "
        "on, more slowly",
    )
    backfill_max_attempts: int = Field(3, ge=1, description="attempts of a batch on transient errors")
    keep_old_current: Literal["auto", "off"] = Field(
        "auto",
        description="auto: while the next migration of a finished table runs, and until its retire, new rows get a vector of "
        "the old model too, where that is at hand; off: of the new model alone (one model in memory)",
    )
    backfill_triggers: Literal["fire", "skip"] = Field(
        "fire",
        description="skip: the application's triggers do not see the backfill; for a role that may set session_replication_role",
    )
    max_rows_per_second: int | None = Field(
        None, ge=1, description="most rows that a backfill writes in a second; unset: no limit"
    )
    max_replication_lag_mb: int | None = Field(
        None,
        ge=1,
        description="a backfill waits while a standby or a replication slot lags farther behind, until it has caught up; "
        "unset: it does not look",
    )
    max_search_slowdown: float | None = Field(
        None,
        gt=1,
        description="a backfill pauses between batches while the p95 of a probe search is more than so many times what it "
        "was as the run began; unset: it does not look",
    )

    @property
    def skips_triggers(self) -> bool:
        """Whether a backfill leaves the application's triggers out."""
        return self.backfill_triggers == "skip"
