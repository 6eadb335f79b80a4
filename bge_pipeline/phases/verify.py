"""Verify: questions about the vectors that a migration has written, each answered without changing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, TextClause

from bge_pipeline.database.connection import Database
from bge_pipeline.database.ids import IdRange
from bge_pipeline.database.indexes import vector_indexes_on
from bge_pipeline.database.pending import count_pending
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.state import MigrationState, require_table, space_of
from bge_pipeline.settings import Settings

LENGTH_TOLERANCE = 1e-3
_LENGTH_SAMPLE_ROWS = 10_000
_SPACE_SAMPLE_ROWS = 32
SAME_TEXT_COSINE = 0.9
"""Least cosine of two vectors of one text by one model; int8 and fp32 differ by less than 0.05 in it, poolings by more
than 0.1, and two texts hardly reach it."""


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
class LengthCheck:
    """Lengths of sampled vectors; the bounds are None where there was no vector."""

    sampled_rows: int
    rows_off_length: int
    shortest: float | None
    longest: float | None

    @property
    def passed(self) -> bool:
        """Whether every sampled vector has unit length."""
        return self.rows_off_length == 0

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class SpaceCheck:
    """Whether the column holds what the encoder makes.

    Attributes:
        recorded: the embedding space in the column's comment.
        configured: the encoder's.
        is_same: whether the two are one space.
        sampled_rows: rows whose text was embedded again.
        lowest_cosine, mean_cosine: between the stored and the new vector of a text; None without rows.
    """

    column: str
    recorded: str | None
    configured: str
    is_same: bool
    sampled_rows: int
    lowest_cosine: float | None
    mean_cosine: float | None

    @property
    def passed(self) -> bool:
        """Whether search with this encoder finds what it should in this column."""
        return self.is_same and (self.lowest_cosine is None or self.lowest_cosine >= SAME_TEXT_COSINE)

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"least_cosine_expected": SAME_TEXT_COSINE}


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


def verify_nothing_pending(database: Database, settings: Settings, id_range: IdRange | None = None) -> PendingCheck:
    """Count the rows of the range (None: of the table) that wait for a vector.

    A hundredth of the table, and at most one batch, is left to the swap.
    """
    state = require_table(database, settings)
    with database.autocommit() as connection:
        pending = count_pending(connection, state.table.target, state.filled.name, id_range)
    left_to_swap = min(settings.backfill_batch_rows, state.table.estimated_rows // 100)
    return PendingCheck(pending, settings.swap_max_pending_rows, left_to_swap)


def require_backfilled(database: Database, settings: Settings) -> None:
    """Refuse to go on to the swap while a backfill is due, which the swap would otherwise do in silence.

    Raises:
        SwapRefused: more rows are pending than a live table always has.
    """
    if require_table(database, settings).phase != "expanded":
        return
    found = verify_nothing_pending(database, settings)
    if found.blocks_swap:
        raise SwapRefused(
            f"{found.pending} rows are pending: the backfill is not over",
            state="nothing was exchanged; search reads the old column",
            next_step="run the backfill, then the swap again",
        )


def verify_unit_length(database: Database, settings: Settings, id_range: IdRange | None = None) -> LengthCheck:
    """Measure the vectors of the range, or a sample of the table's."""
    state = require_table(database, settings)
    statement = state.table.target.sql(
        "SELECT count(*) AS sampled, count(*) FILTER (WHERE abs(norm - 1) > :tolerance) AS off, min(norm), max(norm) "
        f"FROM (SELECT vector_norm({{column}}) AS norm {_from_sample(id_range)} LIMIT :rows) lengths",
        column=state.filled.name,
    )
    with database.autocommit() as connection:
        row = _sample(connection, statement, state, _LENGTH_SAMPLE_ROWS, id_range, tolerance=LENGTH_TOLERANCE).one()
    return LengthCheck(row.sampled, row.off, row.min, row.max)


def verify_space(
    database: Database, settings: Settings, encoder: Encoder, id_range: IdRange | None = None
) -> SpaceCheck:
    """Compare the recorded embedding space with the encoder's, and stored vectors with those it makes of the same texts.

    The second half finds what no comment can tell: a wrong pooling, vectors in the wrong rows, a stale vector.
    """
    state = require_table(database, settings)
    statement = state.table.target.sql(
        f"SELECT {{text}} AS text, {{column}}::real[] AS vector {_from_sample(id_range)} LIMIT :rows",
        column=state.filled.name,
    )
    with database.autocommit() as connection:
        rows = _sample(connection, statement, state, _SPACE_SAMPLE_ROWS, id_range).all()
    recorded = space_of(state.filled)
    is_same = encoder.space.is_same_as(recorded)
    cosines = None
    if rows and is_same:
        stored = np.array([row.vector for row in rows], np.float32)
        made = encoder.encode(encoder.tokenize([row.text for row in rows]))
        cosines = (stored * made).sum(axis=1) / np.maximum(np.linalg.norm(stored, axis=1), 1e-12)
    return SpaceCheck(
        column=state.filled.name,
        recorded=str(recorded) if recorded is not None else None,
        configured=str(encoder.space),
        is_same=is_same,
        sampled_rows=0 if cosines is None else len(cosines),
        lowest_cosine=None if cosines is None else float(cosines.min()),
        mean_cosine=None if cosines is None else float(cosines.mean()),
    )


def verify_index(database: Database, settings: Settings) -> IndexCheck:
    """Look at the vector indexes of the new column, or after the swap of the one that search reads."""
    state = require_table(database, settings)
    with database.autocommit() as connection:
        indexes = vector_indexes_on(connection, state.table.oid, state.filled.number)
    return IndexCheck(
        column=state.filled.name,
        valid=tuple(index.name for index in indexes if index.valid),
        invalid=tuple(index.name for index in indexes if not index.valid),
        bytes=sum(index.bytes for index in indexes),
    )


def _from_sample(id_range: IdRange | None) -> str:
    """Rows that have a vector: of the range, or on random pages of the table."""
    if id_range is not None:
        return f"FROM {{table}} WHERE {{column}} IS NOT NULL AND {id_range.condition}"
    return "FROM {table} TABLESAMPLE SYSTEM (:percent) WHERE {column} IS NOT NULL"


def _sample(
    connection: Connection,
    statement: TextClause,
    state: MigrationState,
    rows: int,
    id_range: IdRange | None,
    **values: Any,
) -> Any:
    values |= {"rows": rows}
    if id_range is not None:
        values |= id_range.values
    else:
        # Twice what is wanted, since pages differ; a small table is read whole, up to the limit.
        estimate = state.table.estimated_rows
        values["percent"] = 100.0 if estimate < 4 * rows else 200.0 * rows / estimate
    return connection.execute(statement, values)
