"""SQL expressions that the parts of a search share: columns of the target table, its text as words, kept CTEs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, Column, ColumnElement, Text, cast, func, literal_column
from sqlalchemy.dialects.postgresql import REGCONFIG
from sqlalchemy.sql import visitors

from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.search.column import SearchedColumn


def on_target(searched: SearchedColumn, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition with its columns of the target table, from whichever Table or mapped class, bound to ours."""
    target = searched.target

    def ours(element: Any, **_: Any) -> Any:
        if isinstance(element, Column) and element.table is not None and _is_target(target, element.table):
            return column_of(searched, element.name)
        return None

    return visitors.replacement_traverse(condition, {}, ours)


def document(searched: SearchedColumn) -> ColumnElement[Any]:
    """The row's text as a tsvector, word for word the expression that `create_text_index` indexes."""
    return func.to_tsvector(text_config(searched), text_of(searched))


def text_of(searched: SearchedColumn, row: Any = None) -> ColumnElement[Any]:
    """The row's text: as it is indexed, or where the statement reads other tables too, of the alias `row` of the table."""
    row_text = searched.target.row_text
    if row_text.is_column:
        return (searched.table if row is None else row).c[row_text.column]
    return literal_column(row_text.sql if row is None else row_text.of(quote(row.name)), Text)


def text_config(searched: SearchedColumn) -> ColumnElement[Any]:
    """SEARCH_LANGUAGE as a text search configuration."""
    return cast(searched.text_config, REGCONFIG)


def column_of(searched: SearchedColumn, name: str) -> Column[Any]:
    """The column `name` of the target table.

    Raises:
        ConfigurationError: it has none of that name.
    """
    if name not in searched.table.c:
        raise ConfigurationError(
            f"expected a column of {searched.target}, got {name!r}; its columns are {', '.join(searched.table.c.keys())}"
        )
    return searched.table.c[name]


def materialized(statement: Any, name: str) -> CTE:
    """The statement as a CTE that is computed once, and by itself."""
    kept: CTE = statement.cte(name).prefix_with("MATERIALIZED", dialect="postgresql")
    return kept


def _is_target(target: TargetTable, table: Any) -> bool:
    return getattr(table, "name", None) == target.table and getattr(table, "schema", None) in (None, target.schema)
