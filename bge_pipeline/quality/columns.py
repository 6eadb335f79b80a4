"""Which two columns of a table are compared."""

from __future__ import annotations

from dataclasses import dataclass

from bge_pipeline.database.catalog import Column, TableDescription
from bge_pipeline.space import EmbeddingSpace


@dataclass(frozen=True)
class ComparedColumns:
    """The vectors that are judged, and those that they are held against.

    Attributes:
        table: the table as the catalog has it.
        new: the column that is judged.
        old: the one that search read before; None where there is none whose vectors are numbers.
        old_space: its embedding space, None where nobody recorded it.
    """

    table: TableDescription
    new: Column
    old: Column | None = None
    old_space: EmbeddingSpace | None = None

    @property
    def names(self) -> list[str]:
        """The new column, and the old one where there is one."""
        return [self.new.name] if self.old is None else [self.new.name, self.old.name]
