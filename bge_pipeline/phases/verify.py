"""Verify: whether a migration may go on to its next phase; each question is answered without changing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.indexes import vector_indexes_on
from bge_pipeline.database.pending import count_pending
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pending_index import rows_that_are_few
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.quality.stored import LengthCheck, SpaceCheck, check_lengths, check_space


@dataclass(frozen=True)
class PendingCheck:
    """Rows without a vector.

    Attributes:
        pending: how many.
        allowed: SWAP_MAX_PENDING_ROWS.
        left_to_swap: so few that a live table always has them; the swap embeds them itself before it locks the table.
    """

    pending: int
    allowed: int
    left_to_swap: int

    @property
    def passed(self) -> bool:
        """Whether the column is as full as it has to be."""
        return self.pending <= self.allowed

    @property
    def blocks_swap(self) -> bool:
        """Whether so much is pending that the backfill is not over."""
        return self.pending > max(self.allowed, self.left_to_swap)

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class IndexCheck:
    """The vector indexes on the column that the migration fills, or that search reads after the swap."""

    column: str
    valid: tuple[str, ...]
    invalid: tuple[str, ...]
    bytes: int

    @property
    def passed(self) -> bool:
        """Whether there is an index and none is an unfinished leftover."""
        return bool(self.valid) and not self.invalid

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verify_nothing_pending(migration: Migration, id_range: IdRange | None = None) -> PendingCheck:
    """Count the rows of the range (None: of the table) that wait for a vector.

    As many as `rows_that_are_few` says are left to the swap, which goes by the same number.
    """
    state = require_table(migration)
    with migration.database.autocommit() as connection:
        pending = count_pending(connection, state.table.target, state.filled.name, id_range)
    left_to_swap = rows_that_are_few(state.table.estimated_rows)
    return PendingCheck(pending, migration.settings.swap_max_pending_rows, left_to_swap)


def require_backfilled(migration: Migration) -> None:
    """Refuse to go on to the swap while a backfill is due, which the swap would otherwise do in silence.

    Raises:
        SwapRefused: more rows are pending than a live table always has.
    """
    if require_table(migration).phase != "expanded":
        return
    found = verify_nothing_pending(migration)
    if found.blocks_swap:
        raise SwapRefused(
            f"{found.pending} rows are pending: the backfill is not over",
            state="nothing was exchanged; search reads the old column",
            next_step="run the backfill, then the swap again",
        )


def verify_unit_length(migration: Migration, id_range: IdRange | None = None) -> LengthCheck:
    """Measure the vectors of the range, or a sample of the table's."""
    state = require_table(migration)
    with migration.database.autocommit() as connection:
        return check_lengths(connection, state.table.target, state.filled, id_range)


def verify_space(migration: Migration, encoder: Encoder, id_range: IdRange | None = None) -> SpaceCheck:
    """Compare the recorded embedding space with the encoder's, and stored vectors with those it makes of the same texts."""
    state = require_table(migration)
    with migration.database.autocommit() as connection:
        return check_space(connection, state.table.target, state.filled, space_of(state.filled), encoder, id_range)


def verify_index(migration: Migration) -> IndexCheck:
    """Look at the vector indexes of the new column, or after the swap of the one that search reads."""
    state = require_table(migration)
    with migration.database.autocommit() as connection:
        indexes = vector_indexes_on(connection, state.table.oid, state.filled.number)
    return IndexCheck(
        column=state.filled.name,
        valid=tuple(index.name for index in indexes if index.valid),
        invalid=tuple(index.name for index in indexes if not index.valid),
        bytes=sum(index.bytes for index in indexes),
    )
