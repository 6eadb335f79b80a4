"""What the application wrote since the swap: whether its vectors are the new model's.

Where old and new vectors have the same dimensions, an application that still writes the old model's is accepted in
silence. Until `retire` a sample of what was written since the swap is compared with what the model makes of its text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection

from bge_pipeline.database.recent import (
    RecentRows,
    empty_written_since,
    is_since,
    oldest_running_transaction,
    sample_written_since,
    transaction_of_comment,
)
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.embedding.endpoint.address import would_send_unasked
from bge_pipeline.errors import BgePipelineError, ConsentRequired
from bge_pipeline.phases.companion import load_recorded
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.row_encoding import BatchEncoder
from bge_pipeline.phases.state import MigrationState, read_state
from bge_pipeline.quality.bounds import SAME_VECTOR_COSINE
from bge_pipeline.search.column import SEARCHABLE_TYPES

logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 90
_EXAMPLES = 5


@dataclass(frozen=True)
class ApplicationVectors:
    """A comparison of rows written since the swap.

    Attributes:
        model: the column's, which search asks.
        compared: rows that were written since the swap, have a vector, and whose text was embedded again; a sample, in
            which rows of this project's own are found too.
        strangers: of these, rows whose vector is not what the model makes of their text.
        examples: ids of some of them.
        lowest_cosine: between a stored vector and the model's; None without rows.
        mend: the statement that makes pending all that was written since the swap; run it when the application has changed.
        not_compared: why nothing could be compared; None where it was.
    """

    model: str
    compared: int
    strangers: int
    examples: tuple[str, ...]
    lowest_cosine: float | None
    mend: str
    not_compared: str | None = None

    @property
    def passed(self) -> bool:
        """Whether no stranger was found."""
        return self.strangers == 0

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.not_compared is not None:
            return f"what was written since the swap could not be compared with the model: {self.not_compared}"
        if self.passed:
            return f"{self.compared} rows written since the swap were compared: their vectors are those of {self.model}"
        return (
            f"{self.strangers} of {self.compared} rows written since the swap (for example {', '.join(self.examples)}) hold "
            f"vectors that {self.model} does not make of their text, and which search therefore misplaces: the application "
            f"seems to write the old model's still. Let it write none, or the new model's; then {self.mend} and "
            "bge-pipeline embed"
        )


def same_dimensions(dimensions: int, *, is_watched: bool) -> str:
    """What nobody may overlook where old and new vectors have the same dimensions.

    `is_watched`: the old column is kept until retire, and until then what is written is compared.
    """
    return (
        f"OLD AND NEW VECTORS BOTH HAVE {dimensions} DIMENSIONS: after the swap PostgreSQL takes the old model's vectors, "
        "written or searched with, without an error. Change every writer and reader over at the swap (Retriever does so by "
        "itself)" + "; until retire, status and Dagster's sensor compare what is written with the model" * is_watched
    )


def accepts_old_vectors(state: MigrationState) -> bool:
    """Whether the column that search reads takes vectors of the previous one, since their dimensions are the same."""
    previous = state.previous
    if previous is None or previous.type_name not in SEARCHABLE_TYPES:
        return False
    return previous.dimensions in (None, state.table.embedding.dimensions)


def compare_application_vectors(
    migration: Migration, encoder: Callable[[], Encoder | None]
) -> ApplicationVectors | None:
    """Compare what was written since the swap; None where the dimensions keep old vectors out, or nothing was written.

    Args:
        migration: of the table.
        encoder: gives the encoder of the column that search reads, None where it is not at hand; called when there is
            something to compare.
    """
    with migration.database.autocommit() as connection:
        state = read_state(connection, migration.target)
        xid = _swap(connection, state)
        if xid is None:
            return None
        column = state.table.embedding
        rows = sample_written_since(connection, state.table.target, column.name, xid, rows=_SAMPLE_ROWS)
    if not len(rows):
        return None
    space = state.current_space
    model = str(space)
    mend = empty_written_since(state.table.target, column.name, xid)
    try:
        chosen = encoder()
        if chosen is not None and chosen.space.is_same_as(space):
            return _compared(rows, chosen, model, mend)
        reason = f"{model} is not at hand" if chosen is None else f"expected {model}, got {chosen.space}"
    except BgePipelineError as error:
        reason = error.message
    return ApplicationVectors(model, 0, 0, (), None, mend, reason)


def compare_with_recorded_model(migration: Migration) -> ApplicationVectors | None:
    """The same with the model that is recorded with the column, loaded only where there is something to compare.

    An endpoint is not asked where the settings name a model on this machine: nobody agreed to send it texts.
    """
    loaded = []

    def encoder() -> Encoder | None:
        with migration.database.autocommit() as connection:
            space = read_state(connection, migration.target).current_space
        if space is not None and would_send_unasked(space, migration.settings):
            raise ConsentRequired(
                f"{space.model} is behind an endpoint, to which texts would be sent; --set EMBEDDING_PROVIDER=openai sends them"
            )
        found = load_recorded(space, migration.settings) if space is not None else None
        loaded.extend([found] if found is not None else [])
        return found

    try:
        return compare_application_vectors(migration, encoder)
    finally:
        for one in loaded:
            one.close()


def written_since(migration: Migration, xid: int | None) -> tuple[int, int] | None:
    """Whether anybody wrote vectors since transaction `xid`, or since the swap if that came later; asks no model.

    Returns how many rows of a sample were, and the transaction to ask about the next time; None where the dimensions
    keep old vectors out.
    """
    with migration.database.autocommit() as connection:
        state = read_state(connection, migration.target)
        swap = _swap(connection, state)
        if swap is None:
            return None
        now = oldest_running_transaction(connection)
        # A number of the future is one of another server, from which the database was restored.
        is_known = xid is not None and is_since(now, xid) and is_since(xid, swap)
        since = xid if xid is not None and is_known else swap
        rows = sample_written_since(
            connection, state.table.target, state.table.embedding.name, since, rows=_SAMPLE_ROWS
        )
    return len(rows), now


def _swap(connection: Connection, state: MigrationState) -> int | None:
    """The transaction of the swap, where what came after it needs a look."""
    if state.previous is None or not accepts_old_vectors(state):
        return None
    return transaction_of_comment(connection, state.table.target, state.previous.number)


def _compared(rows: RecentRows, encoder: Encoder, model: str, mend: str) -> ApplicationVectors:
    batches = BatchEncoder(encoder)
    encoded = batches.encode(batches.tokenize(rows.batch))
    positions = {row_id: position for position, row_id in enumerate(rows.batch.ids)}
    stored = rows.vectors[[positions[row_id] for row_id in encoded.batch.ids]]
    lengths = np.linalg.norm(stored, axis=1)
    cosines = (stored * encoded.vectors).sum(axis=1) / np.maximum(lengths, 1e-12)
    strangers = [str(encoded.batch.ids[position]) for position in np.flatnonzero(cosines < SAME_VECTOR_COSINE).tolist()]
    return ApplicationVectors(
        model=model,
        compared=len(cosines),
        strangers=len(strangers),
        examples=tuple(strangers[:_EXAMPLES]),
        lowest_cosine=float(cosines.min()) if len(cosines) else None,
        mend=mend,
    )
