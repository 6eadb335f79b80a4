"""Functions of the application whose body names the column or its vectors' type: which follow it, and which will not bear it.

PostgreSQL keeps no dependencies of such bodies, and no dimensions of arguments: `vector(1536)` in a signature is `vector`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import Column, TableDescription

# Functions that name the table, functions of the table's triggers that name the column, and functions that name a vector of
# its dimensions. Those whose bodies PostgreSQL has parsed are found by their dependencies instead.
_FIND = """
SELECT p.oid::regprocedure::text AS name, p.prosrc AS body,
       p.prorettype = (SELECT reltype FROM pg_class WHERE oid = :oid) AS returns_rows,
       format('%I.%I(%s)', n.nspname, p.proname, array_to_string(p.proargtypes::regtype[]::text[], ',')) AS signature,
       p.proargmodes IS NOT NULL AND p.proargmodes::text[] && ARRAY['t', 'o', 'b'] AS returns_columns,
       EXISTS (SELECT FROM unnest(p.proallargtypes, p.proargmodes) AS a (type, mode) JOIN pg_type y ON y.oid = a.type
               WHERE a.mode IN ('t', 'o', 'b') AND y.typname = :type) AS returns_vectors,
       position(lower(:table) IN lower(p.prosrc)) > 0 AS names_table,
       position(lower(:column) IN lower(p.prosrc)) > 0
         AND (position(lower(:table) IN lower(p.prosrc)) > 0
           OR p.oid IN (SELECT tgfoid FROM pg_trigger WHERE NOT tgisinternal
                       AND (tgrelid = :oid OR tgrelid IN (SELECT relid FROM pg_partition_tree(:oid))))) AS reads
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.prokind IN ('f', 'p')
  AND (position(lower(:column) IN lower(p.prosrc)) > 0 OR position(lower(:table) IN lower(p.prosrc)) > 0
    OR p.prosrc ~* :pinned)
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
  AND p.proname <> :own_function
ORDER BY 1
"""


@dataclass(frozen=True)
class ReadingFunction:
    """A function that names the column, or vectors of its dimensions.

    Attributes:
        name: as PostgreSQL shows it.
        signature: the same for a statement, with its schema.
        reads: it names table and column; otherwise the table or the type alone.
        is_pinned: its body says `vector(1536)`, in a cast or a declaration.
        is_typed: it declares a variable as the column's `%TYPE`.
        is_by_position: it returns the table's columns by their position, which another column changes.
        returns_vectors: one of the columns that it returns is declared as the old column's type.
    """

    name: str
    signature: str
    reads: bool
    is_pinned: bool
    is_typed: bool
    is_by_position: bool
    returns_vectors: bool

    def mending_statement(self, column: Column) -> str | None:
        """The statement after which its body fits vectors of any dimensions; None where nothing in it says dimensions."""
        definition = f"pg_get_functiondef('{_literal(self.signature)}'::regprocedure)"
        if self.is_pinned:
            definition = rf"regexp_replace({definition}, '{_pinned(column)}', '\1', 'gi')"
        if self.is_typed:
            definition = f"regexp_replace({definition}, '{_literal(_typed(column))}', '{column.type_name}', 'gi')"
        if not (self.is_pinned or self.is_typed):
            return None
        return f"DO $mend$ BEGIN EXECUTE {definition}; END $mend$;"


def find_functions(connection: Connection, table: TableDescription, column: Column) -> list[ReadingFunction]:
    """The application's functions that name `column` of the table, or its type with its dimensions, or return all columns."""
    target = table.target
    values = {
        "table": target.table,
        "column": column.name,
        "oid": table.oid,
        "type": column.type_name,
        "pinned": _pinned(column),
        "own_function": target.trigger_function,
    }
    found = []
    for row in connection.execute(text(_FIND), values):
        reads = row.reads and _names(row.body, column.name)
        is_pinned = column.dimensions is not None and re.search(_in_python(_pinned(column)), row.body, re.I) is not None
        is_by_position = row.names_table and _is_by_position(
            row.body, target.table, rows=row.returns_rows, columns=row.returns_columns
        )
        if not (reads or is_pinned or is_by_position):
            continue
        function = ReadingFunction(
            row.name,
            row.signature,
            reads,
            is_pinned=is_pinned,
            is_typed=reads and re.search(_in_python(_typed(column)), row.body, re.I) is not None,
            is_by_position=is_by_position,
            returns_vectors=row.returns_vectors,
        )
        found.append(function)
    return found


def _names(body: str, name: str) -> bool:
    """Whether the body has the name as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", body, re.I) is not None


def _is_by_position(body: str, table: str, *, rows: bool, columns: bool) -> bool:
    """Whether another column of the table is one too few or one too many in what the function returns."""
    if "select" not in body.lower() or (rows and re.search(r"\breturn\s+next\b", body, re.I)):
        return False
    whole = re.search(
        rf'(\bselect\s+\*\s+from\s+([\w"]+\.)?"?{re.escape(table)}\b)|(\b{re.escape(table)}"?\.\*)', body, re.I
    )
    if columns:
        return whole is not None
    return rows and re.search(r"(\bselect\s+|[\w\"]\.)\*", body, re.I) is None


def _pinned(column: Column) -> str:
    """A pattern of PostgreSQL's for the type with its dimensions; the type alone is its first group."""
    return rf'\m({column.type_name}"?)\s*\(\s*{column.dimensions or 0}\s*\)'


def _typed(column: Column) -> str:
    return rf'[\w".]+\."?{re.escape(column.name)}"?%TYPE'


def _in_python(pattern: str) -> str:
    return pattern.replace(r"\m", r"\b")


def _literal(value: str) -> str:
    return value.replace("'", "''")
