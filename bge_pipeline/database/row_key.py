"""The key of a row: the columns that tell it from every other, one or several together, as SQL that statements share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bge_pipeline.database.sql import quote

OF_INDEX = """ARRAY(
  SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k (number, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place)"""
"""The names of the key columns of a row `i` of `pg_index`, in order."""


def numbered(name: str, columns: int) -> list[str]:
    """Names of so many columns that hold a key somewhere else: `row_id`, `row_id_2`, `row_id_3`."""
    return [name, *(f"{name}_{number}" for number in range(2, columns + 1))]


def as_row(columns: Sequence[str]) -> str:
    """Columns as one value to compare: the column itself, or a row of several. Indexes serve both."""
    return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"


@dataclass(frozen=True)
class RowKey:
    """Columns by their plain names, in the order of the unique index on them; `row` is an alias, None where one table is read."""

    columns: tuple[str, ...]

    def value(self, row: str | None = None) -> str:
        """The key as one value to compare with that of another row."""
        return as_row(self._quoted(row))

    def listed(self, row: str | None = None) -> str:
        """The columns, as ORDER BY, SELECT and an index take them."""
        return ", ".join(self._quoted(row))

    def descending(self, row: str | None = None) -> str:
        """ORDER BY's list from the greatest key on."""
        return ", ".join(f"{column} DESC" for column in self._quoted(row))

    def renamed(self, name: str, row: str | None = None) -> str:
        """The columns in a SELECT that calls them `name`, `name_2` and so on."""
        named = zip(self._quoted(row), self.under(name).columns, strict=True)
        return ", ".join(f"{column} AS {quote(new)}" for column, new in named)

    def under(self, name: str) -> RowKey:
        """The key where its columns are called `name`, `name_2` and so on."""
        return RowKey(tuple(numbered(name, len(self.columns))))

    def texts(self, row: str | None = None) -> str:
        """The key as a text, or an array of texts, one of each column."""
        texts = self._texts(row)
        return texts[0] if len(texts) == 1 else f"ARRAY[{', '.join(texts)}]"

    def text(self, row: str | None = None) -> str:
        """The key as one text: the column's, or a JSON array of the columns', as `id_as_text` makes it."""
        texts = self._texts(row)
        return texts[0] if len(texts) == 1 else f"json_build_array({', '.join(texts)})::text"

    def _quoted(self, row: str | None) -> list[str]:
        return [quote(name) if row is None else f"{row}.{quote(name)}" for name in self.columns]

    def _texts(self, row: str | None) -> list[str]:
        return [f"{column}::text" for column in self._quoted(row)]

    def __str__(self) -> str:
        return ", ".join(self.columns)
