"""How long to wait for others: for locks on the table, and for another operator."""

from __future__ import annotations

from pydantic import Field

from bge_pipeline.settings.group import Group


class LockSettings(Group):
    """How long to wait for others."""

    lock_timeout_ms: int = Field(500, ge=1, le=60_000, description="longest wait for a strong lock, per attempt")
    lock_max_attempts: int = Field(20, ge=1, description="attempts to get a strong lock, with backoff between them")
    operator_wait_seconds: float = Field(
        0, ge=0, description="how long to wait for another operator of the table before giving up"
    )
