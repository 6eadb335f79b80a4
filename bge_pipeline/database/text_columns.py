"""Whether the server takes the text of a row for one immutable expression, and which columns it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg2 import DataError, NotSupportedError, ProgrammingError
from psycopg2.errors import (
    FeatureNotSupported,
    InsufficientPrivilege,
    InvalidObjectDefinition,
    UndefinedColumn,
    UndefinedFunction,
)
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.row_text import RowText
from bge_pipeline.database.sql import Written, quote, render
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import MissingPrivilege, TargetTableError

_PROBE = "bge_pipeline_text_probe"

# Two places that are closed in different ways: what leaves the parentheses of one is an error in the other.
_PLACES = (
    "SELECT CASE WHEN ({one}\n) {fits} THEN 1 END FROM {table} LIMIT 0",
    "SELECT 1 FROM {table} WHERE (({one}\n) {fits}) LIMIT 0",
)
# The server reads a string of statements to its end before it runs the first, and this one's first ends it: the syntax of both
# places is checked before either is run, and nothing behind a semicolon ever is.
_READ_ALONE = "BEGIN EXECUTE {statements}; EXCEPTION WHEN division_by_zero THEN NULL; END;"
_COLUMNS_OF_INDEX = """
SELECT a.attname::text FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass('pg_temp.{index}') AND d.refclassid = 'pg_class'::regclass
  AND d.refobjid = to_regclass('pg_temp.{table}') AND d.refobjsubid > 0
ORDER BY a.attnum
"""
# Names of functions are written out, as the trigger's search_path has nothing of the user's; that of the transaction comes back.
_GENERATED = """
WITH path AS MATERIALIZED (
  SELECT current_setting('search_path') AS before, set_config('search_path', 'pg_catalog, pg_temp', true) AS now
)
SELECT path.before, path.now, g.attname::text AS name, pg_get_expr(g.adbin, g.adrelid) AS expression, g.bases
FROM path LEFT JOIN (
  SELECT a.attname, a.attnum, f.adbin, f.adrelid,
         ARRAY(SELECT b.attname::text FROM pg_depend d JOIN pg_attribute b ON b.attrelid = d.refobjid AND b.attnum = d.refobjsubid
               WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
                 AND d.refobjid = a.attrelid AND d.refobjsubid NOT IN (0, a.attnum) ORDER BY b.attnum) AS bases
  FROM pg_attribute a JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
  WHERE a.attrelid = CAST(:table AS regclass) AND a.attgenerated = 's' AND NOT a.attisdropped
) g ON true ORDER BY g.attnum
"""


@dataclass(frozen=True)
class Generated:
    """A stored generated column: its expression, and the columns that it is made of."""

    expression: str
    bases: tuple[str, ...]


@dataclass(frozen=True)
class TextColumns:
    """The columns that the text of a row is made of, none of them generated.

    Attributes:
        names: of these columns.
        generated: generated columns that are made of them alone; a trigger before the update has no values of theirs.
    """

    names: tuple[str, ...]
    generated: dict[str, Generated]

    @classmethod
    def of(cls, names: Sequence[str], generated: dict[str, Generated]) -> TextColumns:
        """The columns behind `names`, and what is generated from these."""
        bases = {base for name in names for base in (generated[name].bases if name in generated else [name])}
        made = {name: column for name, column in generated.items() if column.bases and bases.issuperset(column.bases)}
        return cls(tuple(sorted(bases)), made)

    def comparison(self, row_text: RowText) -> str:
        """A query whose one value is whether the rows $1 and $2 have the same text, byte for byte."""
        made = "".join(f", ({column.expression}) AS {quote(name)}" for name, column in self.generated.items())
        old, new = (
            row_text.among(
                f"SELECT b.*{made} FROM (SELECT "
                + ", ".join(f"({row}).{quote(name)} AS {quote(name)}" for name in self.names)
                + ") b"
            )
            for row in ("$1", "$2")
        )
        return f'SELECT ({old}::text COLLATE "C") IS NOT DISTINCT FROM ({new}::text COLLATE "C")'


def require_expression(connection: Connection, target: TargetTable) -> None:
    """Refuse a text or a condition that the server does not take for one expression over one row; asks nothing of a plain column.

    Raises:
        TargetTableError: with what the server said.
    """
    for variable, one, fits in (
        ("TARGET_TEXT", target.text_expression, "IS NULL"),
        ("TARGET_WHERE", target.condition, "IS TRUE"),
    ):
        if one is None:
            continue
        try:
            statements = [target.sql(place, one=Written(one), fits=Written(fits)) for place in _PLACES]
            connection.execute(text("DO :body"), {"body": _reading_alone(statements)})
            for statement in statements:
                connection.execute(statement)
        except DBAPIError as error:
            if not _is_about_the_text(error):
                raise
            raise _refusal(target, variable, one, error) from error


def find_text_columns(connection: Connection, target: TargetTable) -> TextColumns:
    """The columns that the text is made of, as the server finds them by an index on it, on an empty temporary table.

    Give a connection that is in a transaction: nothing of it stays.

    Raises:
        TargetTableError: the text is not made of columns by immutable functions alone, as the index of pending rows needs.
        MissingPrivilege: the role may make no temporary table.
    """
    generated = generated_columns(connection, target)
    savepoint = connection.begin_nested()
    try:
        connection.execute(text("SET LOCAL search_path = pg_catalog, pg_temp"))
        connection.execute(
            target.sql("CREATE TEMPORARY TABLE {probe} (LIKE {table} INCLUDING GENERATED)", probe=_PROBE)
        )
        connection.execute(
            target.sql(
                "CREATE INDEX {index} ON pg_temp.{probe} (md5({text}::text))", index=f"{_PROBE}_index", probe=_PROBE
            )
        )
        found = text(_COLUMNS_OF_INDEX.format(index=f"{_PROBE}_index", table=_PROBE))
        names = list(connection.execute(found).scalars())
    except DBAPIError as error:
        savepoint.rollback()
        if isinstance(error.orig, InsufficientPrivilege):
            raise MissingPrivilege(
                f"the text of {target} could not be looked at: {_said(error)}",
                state="nothing was changed",
                next_step="GRANT TEMPORARY ON DATABASE ... TO ..., which the backfill needs too",
            ) from error
        if not _is_about_the_text(error):
            raise
        raise _refusal(target, _variables(target), str(target.row_text), error) from error
    savepoint.rollback()
    if not names:
        raise TargetTableError(
            f"{_variables(target)} {target.row_text} reads no column of {target}: every row would have the same text",
            state="nothing was changed",
            next_step="name the columns that the text is made of",
        )
    return TextColumns.of(names, generated)


@contextmanager
def explaining_text(target: TargetTable) -> Iterator[None]:
    """Say of what fails inside whether it is the text or the condition of the settings that fails for a row.

    Raises:
        TargetTableError: it is.
    """
    try:
        yield
    except DBAPIError as error:
        if target.row_text.is_column or not isinstance(error.orig, DataError):
            raise
        raise TargetTableError(
            f"{_variables(target)} {target.row_text} fails for a row of {target}: {_said(error)}",
            state="every committed batch is kept; the application's statements are not stopped by it",
            next_step="write it so that it gives NULL for such a row, as in CASE WHEN n <> 0 THEN 1 / n END, or mend the row",
        ) from error


def generated_columns(connection: Connection, target: TargetTable) -> dict[str, Generated]:
    """The stored generated columns of the table."""
    rows = connection.execute(text(_GENERATED), {"table": str(target)}).all()
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": rows[0].before})
    return {row.name: Generated(row.expression, tuple(row.bases)) for row in rows if row.name is not None}


def _variables(target: TargetTable) -> str:
    names = {"TARGET_TEXT": target.text_expression, "TARGET_WHERE": target.condition}
    return " and ".join(name for name, value in names.items() if value is not None) or "TARGET_TEXT_COLUMN"


def _reading_alone(statements: Sequence[TextClause]) -> str:
    """The body of a block that lets the server read each statement, and run none."""
    unrun = [("SELECT 1 / 0; " + render(statement)).replace("'", "''") for statement in statements]
    return "BEGIN " + " ".join(_READ_ALONE.format(statements=f"'{each}'") for each in unrun) + " END"


def _is_about_the_text(error: DBAPIError) -> bool:
    """Whether the server refused what it read; not that it gave no lock, no privilege, or no answer."""
    about = isinstance(error.orig, (ProgrammingError, DataError, NotSupportedError))
    return about and not isinstance(error.orig, InsufficientPrivilege)


def _said(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]


def _refusal(target: TargetTable, variables: str, held: str, error: DBAPIError) -> TargetTableError:
    ways: dict[Any, str] = {
        FeatureNotSupported: "of a column that is generated and not stored, TARGET_TEXT takes the expression",
        InvalidObjectDefinition: "write it with operators and functions that are IMMUTABLE: coalesce(title, '') || E'\\n' || "
        "coalesce(body, '') where concat_ws() or format() would be, to_char() nowhere; or keep the text in a column of its own",
        UndefinedFunction: "write a function of your own with its schema: public.my_text(title)",
        UndefinedColumn: "name columns of the table as they stand in the catalog, without the table's name in front",
    }
    hint = next((way for kind, way in ways.items() if isinstance(error.orig, kind)), None)
    return TargetTableError(
        f"{variables} {held.strip()}: expected one SQL expression over the columns of {target}, of immutable "
        f"functions, without subqueries and aggregates; PostgreSQL says: {_said(error)}",
        state="nothing was changed",
        next_step=hint or f"try it as it stands: SELECT (<the expression>) FROM {target} LIMIT 1;",
    )
