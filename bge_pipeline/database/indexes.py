"""Vector indexes: which there are, how the new one should be made, and how much memory its build takes."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.sql import quote, sql
from bge_pipeline.database.target import TargetTable

MEBIBYTE = 1 << 20
MOST_DIMENSIONS_OF_VECTOR = 2_000
"""That pgvector indexes as float32; as float16 it indexes twice as many."""
HNSW_M = 16
HNSW_EF_CONSTRUCTION = 64
"""pgvector's defaults."""
BESIDE_TRAFFIC = "CREATE INDEX CONCURRENTLY {index} ON {table}"
"""How a statement begins that builds an index, for `TargetTable.sql`."""
OVER_PARTITIONS = "CREATE INDEX {index} ON ONLY {table}"
"""How one begins that makes the index of a partitioned table, which is whole when every partition's is attached to it."""
OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>", "l1": "<+>"}
"""By metric, the one that an index of it answers."""
_EXACT_METHODS = ("btree", "hash", "gin", "gist", "spgist", "brin")

_TOKENS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[^\W\d][\w$]*|.""", re.DOTALL)
"""String constants, quoted names, plain names, and single characters."""

_SHAPE = re.compile(
    r" USING (?P<method>ivfflat|hnsw) \(.*\b(?P<element>vector|halfvec|sparsevec|bit)_"
    r"(?P<metric>cosine|l2|ip|l1|hamming|jaccard)_ops"
)
_OF_ONE_LENGTH = re.compile(r" WHERE \(vector_dims\([^()]+\) = \d+\)$")
"""How an index on a column of type `vector` without dimensions says which rows it holds."""

_DEFAULT_SHAPE = re.compile(r" USING ivfflat \((?!\()[^ ]+\)( WITH |$)")
"""PostgreSQL does not print an operator class that is the default, as pgvector's vector_l2_ops is for IVFFlat."""

_BYTES = """CASE WHEN c.relkind = 'I' THEN (
  SELECT COALESCE(sum(pg_relation_size(p.relid)), 0) FROM pg_partition_tree(c.oid) p WHERE p.isleaf)
ELSE pg_relation_size(c.oid) END"""
"""Of an index `c`, or of all that are attached to that of a partitioned table."""
_INDEXES_ON_COLUMN = f"""
SELECT DISTINCT c.relname AS name, m.amname AS method, i.indisvalid AS valid, pg_get_indexdef(c.oid) AS definition,
       {_BYTES} AS bytes
FROM pg_depend d JOIN pg_index i ON i.indexrelid = d.objid JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am m ON m.oid = c.relam
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.refobjid = :oid AND d.refobjsubid = :number
ORDER BY 1
"""


@dataclass(frozen=True)
class Index:
    """An index as the catalog has it; that of a partitioned table is all of its partitions' together."""

    name: str
    method: str
    valid: bool
    definition: str
    bytes: int

    @property
    def is_vector_index(self) -> bool:
        """Whether it answers nearest-neighbour queries (any access method that PostgreSQL itself does not ship)."""
        return self.method not in _EXACT_METHODS


@dataclass(frozen=True)
class IndexPlan:
    """How a vector index is to be built.

    Attributes:
        method: `ivfflat` or `hnsw`.
        element: `vector` (float32) or `halfvec` (float16).
        lists: IVFFlat lists, 0 for HNSW.
        m, ef_construction: HNSW parameters, 0 for IVFFlat.
        memory_bytes: what the build needs in maintenance_work_mem, estimated.
        dimensions: of the column.
        metric: `cosine`, `l2`, `ip` or `l1`: the operator by which searches find the index.
        column_type: `vector` or `halfvec`: where it is the element's too, the column is indexed as it is.
    """

    method: str
    element: str
    dimensions: int
    lists: int
    m: int
    ef_construction: int
    memory_bytes: int
    metric: str = "cosine"
    column_type: str = "vector"

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class IndexShape:
    """What a new index can have in common with another one; lists follow from the rows."""

    method: str
    element: str
    metric: str
    m: int | None = None
    ef_construction: int | None = None

    @classmethod
    def of(cls, definition: str) -> IndexShape | None:
        """The shape of an index by its definition; None of one of another kind, or of a part of the rows.

        Of sparse vectors and bits the method counts; their distances are none of the new column's, but for three.
        """
        definition = _OF_ONE_LENGTH.sub("", definition)
        if " WHERE " in definition:
            return None
        found = _SHAPE.search(definition)
        if found is None:
            return cls("ivfflat", "vector", "l2") if _DEFAULT_SHAPE.search(definition) else None
        if found["element"] == "bit" and "((" in definition:  # bits made of the vectors, for a search in two steps
            return None
        options = {name: _option(definition, name, default=0) or None for name in ("m", "ef_construction")}
        element = "halfvec" if found["element"] == "halfvec" else "vector"
        metric = "cosine" if found["metric"] in ("hamming", "jaccard") else found["metric"]
        return cls(found["method"], element, metric, **options)


def plan_index(
    rows: int,
    dimensions: int,
    *,
    method: str,
    element: str,
    lists: int | None,
    m: int,
    ef_construction: int,
    max_memory_bytes: int | None = None,
    metric: str = "cosine",
) -> IndexPlan:
    """The index for a table of `rows` rows.

    IVFFlat lists follow pgvector's README: rows / 1000 up to 1M rows and sqrt(rows) above. With a memory ceiling
    and no lists asked for, the lists are reduced until the k-means of the build fits under it. An HNSW build takes
    more time with less memory, and so simply stays under the ceiling.
    """
    if method == "hnsw":
        memory = hnsw_memory_bytes(rows, dimensions, m, element)
        if max_memory_bytes is not None:
            memory = min(memory, max_memory_bytes)
        return IndexPlan(method, element, dimensions, 0, m, ef_construction, memory, metric)
    wanted = lists or recommended_lists(rows)
    if lists is None and max_memory_bytes is not None:
        while wanted > 1 and ivfflat_memory_bytes(wanted, dimensions, element) > max_memory_bytes:
            wanted = max(1, wanted * 9 // 10)
    memory = ivfflat_memory_bytes(wanted, dimensions, element)
    return IndexPlan(method, element, dimensions, wanted, 0, 0, memory, metric)


def recommended_lists(rows: int) -> int:
    """Lists by pgvector's rule: https://github.com/pgvector/pgvector#ivfflat."""
    return max(1, rows // 1_000 if rows <= 1_000_000 else math.isqrt(rows))


def ivfflat_memory_bytes(lists: int, dimensions: int, element: str) -> int:
    """What pgvector's k-means asks of maintenance_work_mem: the sum of its allocations in `ElkanKmeans`, ivfkmeans.c."""
    samples = max(lists * 50, 10_000)
    item = _item_bytes(dimensions, element)
    floats = samples * lists + samples + lists * lists + 2 * lists  # bounds, half distances, s, new distances
    integers = samples + 2 * lists  # closest centers, center counts
    aggregated = 4 * dimensions * lists
    return (samples + 2 * lists) * item + 4 * floats + 4 * integers + aggregated + MEBIBYTE


def hnsw_memory_bytes(rows: int, dimensions: int, m: int, element: str) -> int:
    """An estimate of the graph that pgvector keeps in maintenance_work_mem while it builds (above it, it slows down).

    Per row the value, an element of about 150 bytes and 24 bytes for each of its 2m neighbours on the ground layer
    and of m on the layers above, of which a row has 1 / (m - 1) on average.
    """
    neighbours = 2 * m + m / max(1, m - 1)
    return int(rows * (_item_bytes(dimensions, element) + 150 + 24 * neighbours)) + MEBIBYTE


def build_memory_bytes(definition: str, dimensions: int | None, rows: int) -> int:
    """What building an index by its definition, as `pg_get_indexdef` prints it, takes; 0 where that is not known."""
    method = re.search(r" USING (ivfflat|hnsw) ", definition)
    if method is None or dimensions is None:
        return 0
    element = "halfvec" if "halfvec_" in definition else "vector"
    if method.group(1) == "hnsw":
        return hnsw_memory_bytes(rows, dimensions, _option(definition, "m", default=16), element)
    return ivfflat_memory_bytes(_option(definition, "lists", default=100), dimensions, element)


def definition_on(definition: str, column: str, renamed: str) -> str:
    """The definition as it reads for a column that has another name now."""
    head, using, body = definition.partition(" USING ")
    parts: list[str] = []
    for token in _TOKENS.findall(body):
        name = token[1:-1].replace('""', '"') if token.startswith('"') else token
        is_type = bool(parts) and parts[-1] == ":"
        parts.append(quote(renamed) if name == column and not is_type else token)
    return head + using + "".join(parts)


def definition_name(definition: str) -> str:
    """The index's name in a definition."""
    name = str(_TOKENS.findall(definition.partition(" INDEX ")[2])[0])
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def definition_named(definition: str, name: str) -> str:
    """The definition with another name for the index."""
    head, word, body = definition.partition(" INDEX ")
    return head + word + quote(name) + body[len(str(_TOKENS.findall(body)[0])) :]


def _option(definition: str, name: str, *, default: int) -> int:
    match = re.search(rf"\b{name}='?(\d+)", definition)
    return int(match.group(1)) if match else default


def _item_bytes(dimensions: int, element: str) -> int:
    return 8 + dimensions * (2 if element == "halfvec" else 4)


def indexes_on(connection: Connection, oid: int, column_number: int) -> list[Index]:
    """Every index that depends on a column."""
    rows = connection.execute(text(_INDEXES_ON_COLUMN), {"oid": oid, "number": column_number})
    return [Index(row.name, row.method, row.valid, row.definition, int(row.bytes)) for row in rows]


def vector_indexes_on(connection: Connection, oid: int, column_number: int) -> list[Index]:
    """The indexes on a column that answer nearest-neighbour queries."""
    return [index for index in indexes_on(connection, oid, column_number) if index.is_vector_index]


def create_index_statement(
    target: TargetTable, column: str, name: str, plan: IndexPlan, *, head: str = BESIDE_TRAFFIC
) -> TextClause:
    """The statement that builds the index of `plan`, without blocking writers."""
    key = "{column}" if plan.element == plan.column_type else "({column}::halfvec({dimensions}))"
    options = (
        f"lists = {plan.lists}"
        if plan.method == "ivfflat"
        else f"m = {plan.m}, ef_construction = {plan.ef_construction}"
    )
    return target.sql(
        f"{head} USING {plan.method} ({key} {plan.element}_{plan.metric}_ops) WITH ({options})",
        index=name,
        column=column,
        dimensions=plan.dimensions,
    )


def drop_index(connection: Connection, schema: str, name: str) -> None:
    """Drop an index without blocking the table; give an autocommit connection."""
    connection.execute(drop_index_statement(schema, name))


def drop_index_statement(schema: str, name: str) -> TextClause:
    """The statement that drops an index, if it is there, without blocking the table."""
    return sql("DROP INDEX CONCURRENTLY IF EXISTS {index}", index=(schema, name))


def index_is_valid(connection: Connection, schema: str, name: str) -> bool | None:
    """Whether the index of that name is complete; None where there is none."""
    statement = text(
        "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :name"
    )
    return connection.execute(statement, {"schema": schema, "name": name}).scalar_one_or_none()


def index_bytes(connection: Connection, schema: str, name: str) -> int:
    """Size of the index of that name."""
    statement = text(
        f"SELECT {_BYTES} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relname = :name"
    )
    return int(connection.execute(statement, {"schema": schema, "name": name}).scalar_one())


def depends_on_column(connection: Connection, target: TargetTable, name: str, column: str) -> bool:
    """Whether the index of that name, in the table's schema, has the table's column in its key or its predicate."""
    statement = text(
        "SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_class i ON i.oid = d.objid "
        "JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid "
        "WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND i.relname = :name "
        "AND d.refobjid = CAST(:table AS regclass) AND a.attname = :column)"
    )
    return bool(connection.execute(statement, {"name": name, "table": str(target), "column": column}).scalar_one())
