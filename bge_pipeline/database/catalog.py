"""The target table as PostgreSQL's catalog describes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.composite_ids import kind_of
from bge_pipeline.database.ids import IdKind
from bge_pipeline.database.keys import key_advice, require_key
from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.database.partitions import estimated_rows
from bge_pipeline.database.relations import require_migratable
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.text_columns import require_expression
from bge_pipeline.errors import TargetTableError

_TEXT_TYPES = ("text", "varchar", "bpchar", "citext")
MOST_DIMENSIONS = 16_000
"""That a value of type `vector` can have."""
VECTOR_TYPES = ("vector", "halfvec", "sparsevec", "bit")

_TABLE = """
SELECT c.oid, c.relkind, c.relispartition AS is_partition,
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)) AS is_inherited
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = :table
"""
# The statement that writes vectors runs by the role's own search_path, which may leave the type's schema out. A length would add
# nothing to an id. The operator is that of the index, btree's strategy 3; a domain has that of the type below.
_ID_TYPES = """
SELECT CASE WHEN n.nspname = 'pg_catalog' THEN format_type(a.atttypid, a.atttypmod)
            ELSE format('%I.%I', n.nspname, t.typname) END,
       COALESCE((
         SELECT format('OPERATOR(%I.%s)', s.nspname, o.oprname) FROM pg_amop m
         JOIN pg_am ON pg_am.oid = m.amopmethod AND amname = 'btree'
         JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace s ON s.oid = o.oprnamespace
         WHERE m.amopstrategy = 3 AND m.amoplefttype IN (t.oid, t.typbasetype) AND m.amoprighttype = m.amoplefttype
           AND s.nspname <> 'pg_catalog' LIMIT 1), '=')
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE a.attrelid = CAST(:table AS regclass) AND a.attname = ANY(:columns) AND NOT a.attisdropped
ORDER BY array_position(:columns, a.attname::text)
"""
_COLUMNS = """
SELECT a.attname AS name, a.attnum AS number, t.typname AS type_name,
       format_type(a.atttypid, a.atttypmod) AS full_type, a.attnotnull AS not_null,
       a.attgenerated <> '' AS generated, col_description(a.attrelid, a.attnum) AS comment,
       CASE WHEN a.attgenerated = '' THEN (
         SELECT pg_get_expr(f.adbin, f.adrelid) FROM pg_attrdef f WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum
       ) END AS "default"
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""


@dataclass(frozen=True)
class Column:
    """One column of the target table; `dimensions` is None for a column that is not a vector of fixed length.

    `default` is SQL; None where there is none, and of a generated column.
    """

    name: str
    number: int
    type_name: str
    full_type: str
    not_null: bool
    generated: bool
    comment: str | None
    default: str | None = None

    @property
    def note(self) -> ColumnNote | None:
        """What this project wrote in the column's comment."""
        return ColumnNote.from_comment(self.comment)

    @property
    def dimensions(self) -> int | None:
        """The length in `vector(1536)`."""
        match = re.search(r"\((\d+)\)$", self.full_type)
        return int(match.group(1)) if match and self.type_name in VECTOR_TYPES else None

    @property
    def is_numeric(self) -> bool:
        """Whether its vectors can be read as numbers, as pgvector casts them to `vector`: no bits, and nothing longer."""
        if self.type_name == "sparsevec":
            return self.dimensions is not None and self.dimensions <= MOST_DIMENSIONS
        return self.type_name in ("vector", "halfvec")


@dataclass(frozen=True)
class TableDescription:
    """The target table: its columns by name, the kind of its ids, the planner's estimate of its rows.

    Where it `is_partitioned`, its rows are in its partitions (`database.partitions`), which come and go.
    """

    target: TargetTable
    oid: int
    estimated_rows: int
    columns: dict[str, Column]
    id_kind: IdKind
    is_partitioned: bool = False

    @property
    def embedding(self) -> Column:
        """The column that search reads."""
        return self.columns[self.target.embedding_column]

    @property
    def text_is_plain_column(self) -> bool:
        """Whether the text is a column that the application writes itself; a generated one is made of others."""
        return self.target.row_text.is_column and not self.columns[self.target.text_column].generated

    def with_number(self, number: int) -> Column | None:
        """The column of that number, whatever its name is now; None where it was dropped."""
        return next((column for column in self.columns.values() if column.number == number), None)

    def with_role(self, role: str) -> Column | None:
        """The column that plays `role` for the embedding column, or None."""
        for column in self.columns.values():
            note = column.note
            if note and note.role == role and (note.embedding_column or column.name) == self.target.embedding_column:
                return column
        return None


def relation_exists(connection: Connection, name: str) -> bool:
    """Whether a table, or anything else, has that qualified and quoted name."""
    return connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one() is not None


def missing_table(target: TargetTable) -> TargetTableError:
    """The error for a target table that is not there."""
    return TargetTableError(
        f"the target table {target} does not exist",
        state="nothing was changed",
        next_step="set TARGET_SCHEMA and TARGET_TABLE to the table to migrate (plain names, without quotes)",
    )


def describe_table(connection: Connection, target: TargetTable) -> TableDescription:
    """The target table, checked for the shape that a migration needs.

    Raises:
        TargetTableError: names what is missing or cannot be migrated, and what was expected.
    """
    _check_extension(connection)
    row = connection.execute(text(_TABLE), {"schema": target.schema, "table": target.table}).one_or_none()
    if row is None:
        raise missing_table(target)
    require_migratable(connection, target, row)
    columns = {r.name: Column(**r._mapping) for r in connection.execute(text(_COLUMNS), {"oid": row.oid})}  # noqa: SLF001
    _check_columns(connection, target, row.oid, columns)
    require_expression(connection, target)
    key = [columns[name] for name in target.id_columns]
    require_key(connection, target, row.oid, nullable=[column.name for column in key if not column.not_null])
    rows, is_partitioned = estimated_rows(connection, target), row.relkind == "p"
    return TableDescription(target, row.oid, rows, columns, id_kind(connection, target), is_partitioned)


def id_kind(connection: Connection, target: TargetTable) -> IdKind:
    """The kind of the table's ids, and nothing else about it."""
    values = {"table": str(target), "columns": list(target.id_columns)}
    return kind_of([(row[0], row[1]) for row in connection.execute(text(_ID_TYPES), values)])


def _check_extension(connection: Connection) -> None:
    if connection.execute(text("SELECT 1 FROM pg_extension WHERE extname = 'vector'")).one_or_none() is None:
        raise TargetTableError(
            "the extension pgvector is not installed in this database",
            state="nothing was changed",
            next_step="CREATE EXTENSION vector;",
        )


def _check_columns(connection: Connection, target: TargetTable, oid: int, columns: dict[str, Column]) -> None:
    wanted = {
        "TARGET_ID_COLUMN": target.id_columns,
        "TARGET_TEXT_COLUMN": (target.text_column,) if target.text_expression is None else (),
        "TARGET_EMBEDDING_COLUMN": (target.embedding_column,),
    }
    missing = [f"{variable} {name!r}" for variable, names in wanted.items() for name in names if name not in columns]
    if missing:
        raise TargetTableError(
            f"{target} has no {', no '.join(missing)}; its columns are {', '.join(columns)}",
            state="nothing was changed",
            next_step=None if columns.keys() >= set(target.id_columns) else key_advice(connection, target, oid),
        )
    source = columns[target.text_column] if target.text_expression is None else None
    embedding = columns[target.embedding_column]
    problem = None
    if source is not None and source.type_name not in _TEXT_TYPES:
        problem = (
            f"{source.name!r} is {source.full_type}: expected text, character varying or citext to embed; TARGET_TEXT takes "
            f"an SQL expression instead, such as {quote(source.name)}->>'text'"
        )
    elif embedding.type_name not in VECTOR_TYPES:
        problem = f"{embedding.name!r} is {embedding.full_type}: expected a pgvector column"
    elif embedding.generated:
        problem = f"{embedding.name!r} is a generated column: expected one that the application writes"
    if problem:
        raise TargetTableError(f"{target}: {problem}", state="nothing was changed")


def pgvector_version(connection: Connection) -> str | None:
    """Version of the installed extension, for example `0.8.5`."""
    return connection.execute(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")).scalar_one_or_none()


def version_numbers(version: str | None) -> tuple[int, ...]:
    """A version's numbers, to be compared: `(0, 8, 5)`; `(0,)` of none."""
    return tuple(int(part) for part in (version or "0").split(".") if part.isdigit())
