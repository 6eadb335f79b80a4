"""The text of a row: what is embedded of it, as SQL that every statement shares. A column, or an expression over the row."""

from __future__ import annotations

from dataclasses import dataclass

from bge_pipeline.database.sql import quote

_ROW = "bge_pipeline_row"


@dataclass(frozen=True)
class RowText:
    """What is embedded of a row.

    Attributes:
        column: TARGET_TEXT_COLUMN; of no meaning where there is an expression.
        expression: SQL over the row's columns, each by its name alone; None: the column.
        condition: SQL of the same kind, of the rows that are embedded; the others have no text. None: all rows.
    """

    column: str
    expression: str | None = None
    condition: str | None = None

    @property
    def is_column(self) -> bool:
        """Whether it is a column as it stands, in every row."""
        return self.expression is None and self.condition is None

    @property
    def recorded(self) -> str | None:
        """What a filled column remembers of it; None of a plain column."""
        parts = [self.expression, f"WHERE {self.condition}" if self.condition else None]
        return " ".join(part for part in parts if part is not None) or None

    @property
    def sql(self) -> str:
        """The text in a statement that reads the target table alone. The user's SQL ends with its line: it may hold a comment."""
        source = quote(self.column) if self.expression is None else f"(({self.expression}\n)::text)"
        return source if self.condition is None else f"(CASE WHEN {self.in_part} THEN {source}::text END)"

    @property
    def in_part(self) -> str:
        """The condition in such a statement."""
        return "true" if self.condition is None else f"({self.condition}\n)"

    def of(self, row: str) -> str:
        """The same where other tables are read too; `row` is the table's alias."""
        return f"{row}.{self.sql}" if self.is_column else self.among(f"SELECT {row}.*")

    def among(self, columns: str) -> str:
        """The same of the one row that a subquery gives, so that no name can mean a column of anything else."""
        return f"(SELECT {self.sql} FROM ({columns}) {_ROW})"

    def __str__(self) -> str:
        return self.recorded or repr(self.column)
