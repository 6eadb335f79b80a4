"""What the old column holds, by its type or by a look at its rows, and what of it the gate can compare with new vectors."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.sampling import dimensions_in
from bge_pipeline.database.target import TargetTable
from bge_pipeline.phases.application_vectors import same_dimensions
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import SwapSettings
from bge_pipeline.space import EmbeddingSpace


@dataclass(frozen=True)
class OldVectors:
    """The vectors of a column.

    Attributes:
        column: the column.
        by_dimensions: of a column whose type names no dimensions, sampled rows by their dimensions, the most frequent first.
    """

    column: Column
    by_dimensions: dict[int, int]

    @classmethod
    def of(cls, connection: Connection, target: TargetTable, column: Column) -> OldVectors:
        """What is in `column`; its rows are looked at only where the type says nothing."""
        is_open = column.type_name in SEARCHABLE_TYPES and column.dimensions is None
        return cls(column, dimensions_in(connection, target, column.name) if is_open else {})

    def has(self, dimensions: int) -> bool:
        """Whether some of it would be taken for vectors of a new column of so many dimensions, being dense and as long."""
        if self.column.type_name not in SEARCHABLE_TYPES:
            return False
        return dimensions == self.column.dimensions or dimensions in self.by_dimensions

    def told(self) -> str | None:
        """What a person should know of it before a migration; None where it is all of one length and comparable."""
        name = self.column.name
        if not self.column.is_numeric:
            return (
                f"the old column {name!r} is {self.column.full_type}, which pgvector does not turn into numbers of a "
                "vector: the gate compares no neighbours, old and new, and judges the new vectors alone"
            )
        if not self.by_dimensions:
            return None
        parts = [f"{rows:,} with {dimensions:,} dimensions" for dimensions, rows in self.by_dimensions.items()]
        most = next(iter(self.by_dimensions))
        compared = f"; old and new vectors are compared on rows of {most:,}" if len(parts) > 1 else ""
        return f"the old column {name!r} is of no fixed dimensions: of its sampled rows {' and '.join(parts)}{compared}"


def no_longer_not_null(column: str) -> str:
    """What whoever relied on NOT NULL of the column has to know from the swap on."""
    return (
        f"{column!r} was NOT NULL and no longer is: a new row has NULL until it is embedded, and a text that changes empties its "
        "vector. Code that reads the column must expect NULL; were NOT NULL put back, PostgreSQL would refuse those statements"
    )


def swap_notices(settings: SwapSettings, old: OldVectors, space: EmbeddingSpace) -> tuple[str, ...]:
    """What an application has to know of the old vectors once the columns are exchanged."""
    found = []
    if old.has(space.dimensions):
        found.append(same_dimensions(space.dimensions, is_watched=settings.old_embedding == "keep"))
    if old.column.not_null:
        found.append(no_longer_not_null(old.column.name))
    if old.column.default is not None:
        stays = "stays with the old vectors" if settings.old_embedding == "keep" else "went with the old vectors"
        found.append(
            f"{old.column.name!r} had DEFAULT {old.column.default}, which {stays}: a row that is inserted without a vector has "
            "NULL, and is embedded"
        )
    return tuple(found)
