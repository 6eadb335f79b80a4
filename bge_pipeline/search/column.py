"""The column that search reads: its embedding space, its indexes, and a signature that shows when any of it changed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pgvector.sqlalchemy  # noqa: F401 - teaches SQLAlchemy the vector types it meets in the catalog
from sqlalchemy import Column as TableColumn
from sqlalchemy import Connection, MetaData, Table, bindparam, inspect, text
from sqlalchemy.sql.elements import TextClause

from bge_pipeline.database.catalog import Column, describe_table, pgvector_version, relation_exists, version_numbers
from bge_pipeline.database.ids import IdKind
from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.database.partitions import stored_tables
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import TargetTableError
from bge_pipeline.search.identity import RowIdentity
from bge_pipeline.search.scan import Session, VectorIndex, scan_settings
from bge_pipeline.search.text_index import text_index_name
from bge_pipeline.settings import SearchSettings, Settings
from bge_pipeline.space import EmbeddingSpace

SEARCHABLE_TYPES = ("vector", "halfvec")

# Everything that a statement of ours was built on: which column bears the name, what it holds, what is indexed, in partitions
# too.
_SIGNATURE = """
SELECT md5(concat_ws(' ', a.attrelid, a.attnum, format_type(a.atttypid, a.atttypmod),
                     col_description(a.attrelid, a.attnum),
                     (SELECT string_agg(i.indexrelid::text, ',' ORDER BY i.indexrelid) FROM pg_index i
                      WHERE i.indrelid = a.attrelid AND i.indisvalid){of_partitions}))
FROM pg_attribute a
WHERE a.attrelid = CAST(:signature_table AS regclass) AND a.attname = :signature_column AND NOT a.attisdropped
"""
_OF_PARTITIONS = """,
                     (SELECT string_agg(i.indexrelid::text, ',' ORDER BY i.indexrelid)
                      FROM pg_partition_tree(a.attrelid) p JOIN pg_index i ON i.indrelid = p.relid
                      WHERE p.level > 0 AND i.indisvalid)"""
_VECTOR_INDEXES = """
SELECT c.relname AS name, m.amname AS method, o.opcname AS operator_class,
       pg_get_indexdef(c.oid, 1, true) AS expression, array_to_string(c.reloptions, ' ') AS options
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0]
WHERE i.indrelid = :oid AND i.indisvalid AND i.indnatts = 1
  AND o.opcname ~ '^(vector|halfvec)_(cosine|l2|ip|l1)_ops$' AND i.indkey[0] IN (0, :number)
ORDER BY i.indpred IS NOT NULL, o.opcname !~ 'cosine', c.relname
"""
_MADE_OF = (
    r"\(*(?:(?:{name}\.)?(?:subvector|l2_normalize)\(\(*)?{column}"
    r"(?:\)|, \d+|::(?:{name}\.)?(?:vector|halfvec)(?:\(\d+\))?)*"
)
"""What an index may hold, as PostgreSQL prints it: the column, some of its dimensions or its unit vectors, of whichever type."""
_MAX_SCAN_TUPLES = (
    "SELECT CAST(COALESCE(NULLIF(current_setting('hnsw.max_scan_tuples', true), ''), '20000') AS integer)"
)
"""pgvector's default where nobody set it; its own library is loaded by the first search alone."""
_HAS_TEXT_INDEX = """
SELECT EXISTS (
  SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
  WHERE i.indrelid = :oid AND i.indisvalid AND i.indpred IS NULL
    AND (c.relname = :expression_index OR pg_get_indexdef(i.indexrelid, 1, true) IN (
      format('to_tsvector(%L::regconfig, %I)', CAST(:config AS regconfig)::text, CAST(:column AS text)),
      format('to_tsvector(%L::regconfig, %I::text)', CAST(:config AS regconfig)::text, CAST(:column AS text)))))
"""


@dataclass(frozen=True)
class SearchedColumn:
    """What a statement of ours is built on.

    Attributes:
        target: the target table.
        column: the vector column as the catalog has it.
        signature: changes whenever something here does; `signature_statement` reads it again.
        table: the table with its columns' types, for filters.
        id_kind: of the table's ids.
        is_partitioned: whether its rows are in partitions, whose indexes are part of the signature.
        index: the ANN index to use, None where every row must be compared.
        has_text_index: whether an index of `create_text_index` is there.
        text_config: PostgreSQL's text search configuration.
        estimated_rows: the planner's.
        pgvector: version of the extension, for example (0, 8, 5).
        max_scan_tuples: rows after which an iterative scan of HNSW ends.
    """

    target: TargetTable
    column: Column
    signature: str
    table: Table
    id_kind: IdKind
    is_partitioned: bool
    index: VectorIndex | None
    has_text_index: bool
    text_config: str
    estimated_rows: int
    pgvector: tuple[int, ...]
    max_scan_tuples: int

    @property
    def identity(self) -> RowIdentity:
        """How statements name a row."""
        return RowIdentity(self.target.id_columns)

    @property
    def space(self) -> EmbeddingSpace | None:
        """The embedding space of the vectors, None where nobody recorded it."""
        note = self.column.note
        return note.space if note is not None else None

    @property
    def expression(self) -> str:
        """What is compared with the query's vector, as SQL: what the index holds, or the column."""
        return self.index.expression if self.index is not None else quote(self.column.name)

    @property
    def effort(self) -> str | None:
        """That of the index; None without one."""
        return self.index.effort if self.index is not None else None

    def expression_for(self, dimensions: int) -> str:
        """The same for a query of so many dimensions: an index of a column without fixed dimensions may hold others."""
        held = re.search(r"::(?:vector|halfvec)\((\d+)\)\)?$", self.expression)
        return self.expression if held is None or int(held[1]) == dimensions else quote(self.column.name)

    @property
    def element(self) -> str:
        """The type of `expression`: `vector` or `halfvec`."""
        return self.index.element if self.index is not None else self.column.type_name

    @property
    def metric(self) -> str:
        """How two vectors are compared: the index's way, or by cosine."""
        return self.index.metric if self.index is not None else "cosine"

    def __str__(self) -> str:
        return f"column {self.column.name!r} of {self.target}"


def configured_scan(searched: SearchedColumn, settings: SearchSettings, candidates: int) -> Session:
    """Parameters for a search: those of the settings, else what the swap measured on such an index, else the defaults."""
    note = searched.column.note
    measured = note.search_effort if note is not None and _was_measured_on(searched.index, note) else None
    return scan_settings(
        searched.index,
        searched.pgvector,
        candidates,
        probes=settings.search_probes or measured,
        ef_search=settings.search_ef_search or (max(measured, candidates) if measured else None),
    )


def signature_statement(target: TargetTable, column: str, *, is_partitioned: bool = True) -> TextClause:
    """The query for the signature as it is now: one row, or none where the column is gone.

    Of a table that is not partitioned it is the same either way; known not to be, it takes the server less time.
    """
    statement = text(_SIGNATURE.format(of_partitions=_OF_PARTITIONS if is_partitioned else ""))
    return statement.bindparams(bindparam("signature_table", str(target)), bindparam("signature_column", column))


def read_column(connection: Connection, settings: Settings, name: str | None = None) -> SearchedColumn:
    """What is in column `name` of the target table; None stands for TARGET_EMBEDDING_COLUMN.

    Raises:
        TargetTableError: the table or the column is not there, or does not hold dense vectors.
    """
    target = TargetTable.from_settings(settings)
    name = name or target.embedding_column
    # Read first: a change between this and the rest shows as a signature that does not match the next search's.
    signature = (
        connection.execute(signature_statement(target, name)).scalar_one_or_none()
        if relation_exists(connection, str(target))
        else None
    )
    described = describe_table(connection, target)
    column = described.columns.get(name)
    if column is None or signature is None or column.type_name not in SEARCHABLE_TYPES:
        held = "there is no such column" if column is None else f"it is {column.full_type}"
        raise TargetTableError(f"expected a vector or halfvec column {name!r} in {target} to search, {held}")
    columns = inspect(connection).get_columns(target.table, schema=target.schema)
    # An index on an expression is known by its name, which says which expression it is.
    by_column = target.row_text.is_column
    values = {
        "oid": described.oid,
        "config": settings.search_language,
        "column": target.text_column if by_column else "",
        "expression_index": None if by_column else text_index_name(target, settings.search_language),
    }
    index = _vector_index(connection, described.oid, column.number, name)
    if index is None and described.is_partitioned:  # those that the partitions have by themselves are of one kind
        index = next(
            (
                found
                for partition in stored_tables(connection, target)
                if (found := _vector_index(connection, *_place(connection, partition, name), name)) is not None
            ),
            None,
        )
    return SearchedColumn(
        target=target,
        column=column,
        signature=signature,
        table=Table(
            target.table, MetaData(), *(TableColumn(c["name"], c["type"]) for c in columns), schema=target.schema
        ),
        id_kind=described.id_kind,
        is_partitioned=described.is_partitioned,
        index=index,
        has_text_index=connection.execute(text(_HAS_TEXT_INDEX), values).scalar_one(),
        text_config=settings.search_language,
        estimated_rows=described.estimated_rows,
        pgvector=version_numbers(pgvector_version(connection)),
        max_scan_tuples=connection.execute(text(_MAX_SCAN_TUPLES)).scalar_one(),
    )


def _place(connection: Connection, table: TargetTable, name: str) -> tuple[int, int]:
    """Number of the table and of its column, which differs from one partition to the next."""
    statement = text(
        "SELECT attrelid, attnum FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) AND attname = :name"
    )
    oid, number = connection.execute(statement, {"table": str(table), "name": name}).one()
    return oid, number


def _was_measured_on(index: VectorIndex | None, note: ColumnNote) -> bool:
    return index is not None and note.search_effort_index in (None, index.kind)


def _vector_index(connection: Connection, oid: int, number: int, column: str) -> VectorIndex | None:
    either = f"(?:{re.escape(column)}|{re.escape(quote(column))})"
    made_of_column = re.compile(_MADE_OF.format(column=either, name=r"(?:\w+|\"(?:[^\"]|\"\")+\")"))
    rows = connection.execute(text(_VECTOR_INDEXES), {"oid": oid, "number": number})
    row = next((row for row in rows if made_of_column.fullmatch(row.expression)), None)
    if row is None:
        return None
    element, metric, _ = row.operator_class.split("_")
    lists = re.search(r"\blists=(\d+)", row.options or "")
    default_lists = 100 if row.method == "ivfflat" else 0
    return VectorIndex(
        row.name, row.method, metric, row.expression, element, int(lists.group(1)) if lists else default_lists
    )
