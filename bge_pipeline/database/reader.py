"""Reading pending rows: keyset pages, each row with the version stamp that the writer checks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.ids import IdRange
from bge_pipeline.database.pending import HAS_TEXT, waits
from bge_pipeline.database.target import TargetTable

SHUFFLED = "ORDER BY md5({id}::text || CAST(:seed AS text))"
"""Sampled pages come in the order of the table; a limit would favour its beginning."""


@dataclass(frozen=True)
class PendingBatch:
    """Rows as they stood when they were read.

    Attributes:
        ids: integers or UUID strings.
        versions: the rows' `xmin`: any later update of a row has another.
        texts: what to embed.
    """

    ids: Sequence[Any]
    versions: Sequence[int]
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digests(self) -> list[bytes]:
        """MD5 of each text in UTF-8."""
        return [hashlib.md5(text.encode(), usedforsecurity=False).digest() for text in self.texts]

    def only(self, positions: Sequence[int]) -> PendingBatch:
        """The batch reduced to some of its rows."""
        return PendingBatch(
            [self.ids[i] for i in positions], [self.versions[i] for i in positions], [self.texts[i] for i in positions]
        )

    def halves(self) -> tuple[PendingBatch, PendingBatch]:
        """The first half of the rows, rounded down, and the rest."""
        middle = len(self) // 2
        return self.only(range(middle)), self.only(range(middle, len(self)))

    def joined(self, other: PendingBatch) -> PendingBatch:
        """These rows and then the others."""
        return PendingBatch([*self.ids, *other.ids], [*self.versions, *other.versions], [*self.texts, *other.texts])


def read_pending(
    connection: Connection,
    target: TargetTable,
    column: str,
    rows: int,
    id_range: IdRange | None = None,
    *,
    after: Any = None,
) -> Iterator[PendingBatch]:
    """Pending rows in batches of `rows`, in id order, in constant memory.

    Each page is a query of its own that starts after the last id of the page before: no transaction stays open, so
    vacuum is never held up. Give an autocommit connection. `after` resumes behind an id.
    """
    where = waits(connection, target)
    values: dict[str, Any] = {"rows": rows}
    if id_range is not None:
        where += f" AND {id_range.condition}"
        values |= id_range.values
    while True:
        behind = "" if after is None else " AND {id} > :after"
        page = target.sql(
            f"SELECT {{id}}, xmin::text::bigint, {{text}} FROM {{table}} t WHERE {where}{behind} ORDER BY {{id}} LIMIT :rows",
            column=column,
        )
        found = connection.execute(page, values if after is None else values | {"after": after}).all()
        if not found:
            return
        ids, versions, texts = zip(*found, strict=True)
        yield PendingBatch([value if isinstance(value, int) else str(value) for value in ids], versions, texts)
        after = ids[-1]


def sample_texts(connection: Connection, target: TargetTable, rows: int, *, seed: int = 0) -> list[str]:
    """About `rows` texts drawn from random pages of the table, the same ones for the same seed and table."""
    statement = target.sql(
        "SELECT {text} FROM {table} TABLESAMPLE SYSTEM (:percent) REPEATABLE (:seed) "
        f"WHERE {HAS_TEXT} {SHUFFLED} LIMIT :rows"
    )
    percent = sample_percent(connection, target, rows)
    return list(connection.execute(statement, {"percent": percent, "seed": seed, "rows": rows}).scalars())


def sample_percent(connection: Connection, target: TargetTable, rows: int) -> float:
    """Percentage of the table's pages for TABLESAMPLE that holds `rows` rows or more."""
    estimate = connection.execute(
        target.sql("SELECT GREATEST(reltuples, 0) FROM pg_class WHERE oid = CAST(:name AS regclass)"),
        {"name": str(target)},
    ).scalar_one()
    # Twice what is wanted, since pages differ; a table never analysed is read whole, up to the limit.
    return 100.0 if estimate < 4 * rows else min(100.0, 200.0 * rows / estimate)
