"""Rows written since a transaction, found by a look at parts of the table; no reading of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from bge_pipeline.database.partitions import STORED, stored_tables
from bge_pipeline.database.pending import IS_TEXT
from bge_pipeline.database.pending_reader import PendingBatch
from bge_pipeline.database.size import table_pages
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable

_NEWEST_IDS = 500
_LAST_PAGES = 64
_RANDOM_PAGES = 2_000

# Transaction numbers go in a circle of 2^32, and half of it lies ahead.
_CIRCLE, _HALF = (1 << 32) - 1, 1 << 31
_SINCE = f"((version::text::bigint - :xid) & {_CIRCLE}) < {_HALF}"
_ROWS = "SELECT {id_text} AS id, {text} AS text, xmin AS version, {column} AS vector FROM {table} t"
_NEWEST = _ROWS + " ORDER BY {t_ids_descending} LIMIT :newest_ids"
_AT_THE_END = _ROWS + " WHERE ctid >= CAST(:first_of_last_pages AS tid)"
_AT_RANDOM = _ROWS + " TABLESAMPLE SYSTEM (:percent)"
_LATEST_COMMENT = """
SELECT xmin::text::bigint FROM pg_description
WHERE classoid = 'pg_class'::regclass AND objoid = CAST(:table AS regclass) AND objsubid = :number
"""


@dataclass(frozen=True)
class RecentRows:
    """Rows that have a vector.

    Attributes:
        batch: the n rows, each with its `xmin` and text.
        vectors: float32 (n, dimensions), in the same order.
    """

    batch: PendingBatch
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.batch)


def transaction_of_comment(connection: Connection, target: TargetTable, number: int) -> int | None:
    """Number of the transaction that wrote the comment of a column, which for the previous column is the swap's."""
    values = {"table": str(target), "number": number}
    return connection.execute(text(_LATEST_COMMENT), values).scalar_one_or_none()


def is_since(xid: int, other: int) -> bool:
    """Whether transaction `xid` is `other` or came later."""
    return (xid - other) & _CIRCLE < _HALF


def oldest_running_transaction(connection: Connection) -> int:
    """What everybody with a lower transaction number wrote is there or was rolled back."""
    statement = text(f"SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint & {_CIRCLE}")
    return int(connection.execute(statement).scalar_one())


def sample_written_since(
    connection: Connection, target: TargetTable, column: str, xid: int, *, rows: int
) -> RecentRows:
    """At most `rows` rows that have a vector in `column` and were written by transaction `xid` or a later one.

    A third each from the 500 highest ids, from the last 64 pages (of all partitions together), and from 2,000 pages at random:
    new rows are at the end of one of these or anywhere, changed ones anywhere. Rows that this project wrote are among them.
    """
    stored = {table: table_pages(connection, table) for table in stored_tables(connection, target)}
    third = max(1, rows // 3)
    last_pages = max(1, _LAST_PAGES // max(1, len(stored)))
    looks: list[tuple[TargetTable, str, dict[str, Any]]] = [
        (target, _NEWEST, {"newest_ids": _NEWEST_IDS}),
        *(
            (table, _AT_THE_END, {"first_of_last_pages": f"({max(0, pages - last_pages)},0)"})
            for table, pages in stored.items()
        ),
        (target, _AT_RANDOM, {"percent": min(100.0, 100.0 * _RANDOM_PAGES / max(1, sum(stored.values())))}),
    ]
    found: dict[Any, Any] = {}
    for table, part, values in looks:
        statement = table.sql(
            f"SELECT id, version::text::bigint, text, CAST(vector::vector AS real[]) FROM ({part}) part "
            f"WHERE vector IS NOT NULL AND {IS_TEXT} AND {_SINCE} LIMIT :rows",
            column=column,
        )
        wanted = max(1, third // max(1, len(stored))) if part is _AT_THE_END else third
        found |= {row[0]: row for row in connection.execute(statement, values | {"xid": xid, "rows": wanted})}
    ids, versions, texts, vectors = zip(*found.values(), strict=True) if found else ((), (), (), ())
    return RecentRows(
        PendingBatch(ids, versions, texts),
        np.array(vectors, np.float32),
    )


def empty_written_since(target: TargetTable, column: str, xid: int) -> str:
    """The statement, for a person, that makes pending what was written by transaction `xid` or a later one."""
    condition = _SINCE.replace("version", "xmin").replace(":xid", str(xid))
    name = quote(column)
    return f"UPDATE {target} SET {name} = NULL WHERE {name} IS NOT NULL AND {condition};"


def written_rows(connection: Connection, target: TargetTable) -> int:
    """Rows inserted, updated and deleted so far, by PostgreSQL's statistics, which lag by a second or so."""
    query = f"SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_all_tables WHERE relid IN ({STORED})"
    return int(connection.execute(text(query), {"table": str(target)}).scalar() or 0)
