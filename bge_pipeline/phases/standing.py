"""Standing: whether what search reads is what the settings ask for, and complete; what a person should see at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bge_pipeline.database.identity import TableIdentity, identity_of
from bge_pipeline.database.recent import written_rows
from bge_pipeline.phases.consent import rolled_back
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.phases.status import Status, read_status
from bge_pipeline.space import EmbeddingSpace

Level = Literal["good", "look", "bad"]


@dataclass(frozen=True)
class Standing:
    """What there is to say of a table as it stands.

    Attributes:
        identity: the table, its database and its server.
        status: its counts, phase and next step.
        wrong: what must not stay so: search reads what a migration was to replace, or vectors of another model.
        to_look_at: what a person should have seen.
    """

    identity: TableIdentity
    status: Status
    wrong: tuple[str, ...]
    to_look_at: tuple[str, ...]

    @property
    def level(self) -> Level:
        """The worst of it."""
        return "bad" if self.wrong else "look" if self.to_look_at else "good"

    def __str__(self) -> str:
        status, index = self.status, self.status.searched_index
        reads = f"search reads {status.searched_column!r}: {status.dimensions} dimensions, {status.model or 'model not recorded'}"
        uses = (
            f"index {index.name} ({index.method}{'' if index.valid else ', INVALID'})"
            if index
            else "without a vector index"
        )
        return "\n\n".join(
            [*self.wrong, *self.to_look_at, f"phase {status.phase}; {reads}, {uses}", f"next: {status.next_step}"]
        )

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        status, index = self.status, self.status.searched_index
        return {
            "phase": "rolled back" if status.rolled_back else status.phase,
            "search_reads": status.searched_column,
            "model": status.model or "not recorded",
            "dimensions": status.dimensions,
            "index": index.name if index else "none",
            "rows": status.rows,
            "not_searchable": status.not_searchable,
            "pending": status.pending,
            "being_filled": status.column if status.new_model else None,
            "next_step": status.next_step,
            "table": self.identity.table,
            "database": self.identity.database,
            "server": self.identity.server or "not told to this role",
        }


def read_standing(migration: Migration, space: EmbeddingSpace) -> Standing:
    """How the table stands; counts every row once.

    Args:
        migration: of the table.
        space: the embedding space that the settings ask for.

    Raises:
        TargetTableError: there is no such table.
    """
    target = migration.target
    with migration.database.autocommit() as connection:
        state, identity = read_state(connection, target), identity_of(connection, target)
    status = read_status(migration)
    return Standing(identity, status, _wrong(status, state, space), _to_look_at(status, state, space))


def outline(migration: Migration, space: EmbeddingSpace) -> tuple[str, int]:
    """What a change of which calls for another look, counting no row; and how many rows were written so far."""
    target = migration.target
    with migration.database.autocommit() as connection:
        state, identity = read_state(connection, target), identity_of(connection, target)
        written = written_rows(connection, state.table.target)
    columns = (state.table.embedding, state.new, state.previous)
    parts = [f"{column.name}={column.dimensions} of {space_of(column)}" for column in columns if column is not None]
    return " ".join([str(identity), state.phase, rolled_back(state.new) or "", *parts, f"wanted {space}"]), written


def _wrong(status: Status, state: MigrationState, space: EmbeddingSpace) -> tuple[str, ...]:
    found = []
    if status.rolled_back is not None:
        found.append(f"rolled back at {status.rolled_back}: search reads the old vectors again")
    filled = state.new or (state.table.embedding if state.phase == "swapped" else None)
    recorded = space_of(filled) if filled is not None else None
    if filled is not None and recorded is not None and not recorded.is_same_as(space):
        found.append(
            f"{filled.name!r} holds vectors of {recorded}, and the settings name {space}: nothing embeds new rows"
        )
    if status.searched_index is not None and not status.searched_index.valid:
        found.append(f"the index {status.searched_index.name} on {status.searched_column!r} is not complete")
    return tuple(found)


def _to_look_at(status: Status, state: MigrationState, space: EmbeddingSpace) -> tuple[str, ...]:
    found = []
    if status.not_searchable:
        whose = "" if status.searched_pending else ", which the application fills"
        found.append(
            f"search cannot find {status.not_searchable:,} rows, which have no vector in {status.searched_column!r}{whose}"
        )
    current = state.current_space
    if state.phase == "retired" and current is not None and not current.is_same_as(space):
        found.append(f"search reads vectors of {current}, and the settings name {space}: that is the next migration")
    if status.searched_index is None and state.phase in ("swapped", "retired"):
        found.append(f"{status.searched_column!r} has no vector index: search reads the whole table")
    if status.paused is not None:
        found.append(f"the table is {status.paused}")
    return (*found, *status.warnings)
