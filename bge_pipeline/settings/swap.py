"""The exchange of the columns: what becomes of the old one, and consent."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bge_pipeline.settings.group import Group


class SwapSettings(Group):
    """What becomes of the old column and its index, and consent."""

    old_index: Literal["drop", "keep"] = Field(
        "keep",
        description="keep: the old ANN index stays until the swap, and search goes on through it; drop: it goes in expand",
    )
    old_embedding: Literal["keep", "drop"] = Field("keep", description="what the swap does with the old vectors")
    dependents: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="swap or rollback when views, policies or the like still depend on the column that makes room",
    )
    swap_max_pending_rows: int = Field(
        0, ge=0, description="rows that may still be pending when the columns are exchanged"
    )
    swap_max_writer_pause_ms: int = Field(
        1_000,
        ge=10,
        le=60_000,
        description="for how long writers of the table may wait while the last rows are embedded and the columns exchanged; "
        "readers do not",
    )
    begin_next_migration: str | None = Field(
        None,
        description="consent to begin the next migration on a table whose last one is over: the name that EMBEDDING_MODEL has",
    )
    forward_after_rollback: str | None = Field(
        None,
        pattern=r"^\d{8}T\d{6}\.\d{3}Z$",
        description="consent to go forward again with a migration that was rolled back: the moment that `status` names",
    )
