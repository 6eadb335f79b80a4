"""The id of a row in the statements of a search: `id`, and `id_2` and so on where the key has several columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Label, Row, and_

from bge_pipeline.database.ids import from_driver
from bge_pipeline.database.row_key import numbered


@dataclass(frozen=True)
class RowIdentity:
    """The key of the target table, whose columns have these names there."""

    columns: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """What the columns are called in a statement."""
        return numbered("id", len(self.columns))

    def labels(self, table: Any) -> list[Label[Any]]:
        """The columns of the table itself, under those names."""
        return [table.c[column].label(name) for column, name in zip(self.columns, self.names, strict=True)]

    def of(self, found: Any) -> list[ColumnElement[Any]]:
        """The columns of what was found in it."""
        return [found.c[name] for name in self.names]

    def same(self, left: Any, right: Any) -> ColumnElement[bool]:
        """Whether two that were found are one row."""
        return and_(*(one == other for one, other in zip(self.of(left), self.of(right), strict=True)))

    def is_row(self, row: Any, found: Any) -> ColumnElement[bool]:
        """Whether a row of the table is the one that was found."""
        named = zip(self.columns, self.of(found), strict=True)
        return and_(*(row.c[column] == value for column, value in named))

    def value(self, row: Row[Any]) -> Any:
        """The id in a row that a statement returned: None where nothing was found."""
        values = [row._mapping[name] for name in self.names]  # noqa: SLF001 - the public name of it
        return None if values[0] is None else from_driver(values)
