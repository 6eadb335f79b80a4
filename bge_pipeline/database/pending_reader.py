"""Reading pending rows in batches, each row with the version stamp that the writer checks.

The order decides what their updates cost. An update that changes no indexed column and finds room in the row's own page is
HOT: no index of the table hears of it. A full page has no room for its first update, which goes elsewhere; what that row
leaves behind is enough for the next one of the page, and so on, if each is committed before the next begins. So rows are read
in turns, one of every page in each turn, the largest of a page first, since every later one then fits where the one before
it was. https://github.com/postgres/postgres/blob/master/src/backend/access/heap/README.HOT
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg2.errors import CharacterNotInRepertoire, UntranslatableCharacter
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import id_kind
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import IdKind
from bge_pipeline.database.partitions import stored_tables
from bge_pipeline.database.pending import has_pending_index, waits
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import TargetTableError

_WINDOW_ROWS = 16_384
"""Rows whose places are known at once: several times the pages of a commit, and little memory."""

_FEWEST_PAGES = 64
_MOST_BYTES = 32 * 2**20
"""Of texts in a batch, of which several are on their way at once; a longer text is a batch of its own."""

_TURNS = """
SELECT place::text AS place, block, bytes, {last} AS last FROM (
  SELECT ctid AS place, (ctid::text::point)[0]::bigint AS block, {{t_ids_as_id}}, octet_length({{text}}::text) AS bytes
  FROM {{table}} t WHERE {where}
) pending ORDER BY row_number() OVER (PARTITION BY block ORDER BY least(bytes, 2000) DESC, place), place
"""
_ROWS_AT = (
    "SELECT ctid::text AS place, {identity} AS identity, xmin::text::bigint AS version, {{text}} AS text "
    "FROM {{table}} t WHERE ctid = ANY(CAST(:places AS tid[])) AND {where}"
)
_ROWS_BY_ID = """
SELECT identity, version, text FROM (
  SELECT *, octet_length(text::text) AS bytes,
         sum(octet_length(text::text)) OVER (ORDER BY {ids} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
  FROM (
    SELECT {{t_ids_as_id}}, {identity} AS identity, xmin::text::bigint AS version, {{text}} AS text
    FROM {{table}} t WHERE {where} ORDER BY {{t_ids}} LIMIT :rows
  ) found
) counted WHERE bytes_before IS NULL OR bytes_before + bytes <= :most_bytes ORDER BY {ids}
"""
_SIZE = """
SELECT pg_relation_size(c.oid) / current_setting('block_size')::bigint AS pages,
       CASE WHEN c.reltuples > 0 AND c.relpages > 0 THEN c.reltuples / c.relpages ELSE 64 END AS rows_in_page
FROM pg_class c WHERE c.oid = CAST(:name AS regclass)
"""


@dataclass(frozen=True)
class PendingBatch:
    """Rows as they stood when they were read.

    Attributes:
        ids: integers, strings or tuples of them, as `IdKind` has them travel.
        versions: the rows' `xmin`: any later update of a row has another.
        texts: what to embed.
        blocks: the page that each row was in; empty where the order of pages does not count.
        partition: the one that all the rows were in; None of a table that has none.
    """

    ids: Sequence[Any]
    versions: Sequence[int]
    texts: Sequence[str]
    blocks: Sequence[int] = ()
    partition: TargetTable | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digests(self) -> list[bytes]:
        """MD5 of each text in UTF-8."""
        return [hashlib.md5(text.encode(), usedforsecurity=False).digest() for text in self.texts]

    def only(self, positions: Sequence[int]) -> PendingBatch:
        """The batch reduced to some of its rows."""
        return PendingBatch(
            [self.ids[i] for i in positions],
            [self.versions[i] for i in positions],
            [self.texts[i] for i in positions],
            [self.blocks[i] for i in positions] if self.blocks else (),
            self.partition,
        )

    def halves(self) -> tuple[PendingBatch, PendingBatch]:
        """The first half of the rows, rounded down, and the rest."""
        middle = len(self) // 2
        return self.only(range(middle)), self.only(range(middle, len(self)))

    def joined(self, other: PendingBatch) -> PendingBatch:
        """These rows and then the others, of the same partition."""
        return PendingBatch(
            [*self.ids, *other.ids],
            [*self.versions, *other.versions],
            [*self.texts, *other.texts],
            [*self.blocks, *other.blocks],
            self.partition,
        )


class PendingReader:
    """Gives every row that is pending when it comes to it, once, in constant memory; one instance a pass.

    Partitions are read one after another, as places in pages, and updates that stay in them, are a partition's own. A row that
    the application moves to another one meanwhile is left to the next pass, and so are partitions that come meanwhile.

    Each query is a transaction of its own, so that vacuum is never held up: give autocommit connections. After an error the
    next call, with another connection, goes on where the last one stood.
    """

    def __init__(self, target: TargetTable, column: str, rows: int, id_range: IdRange | None = None) -> None:
        self._target = target
        self._column = column
        self._rows = rows
        self._id_range = id_range
        self._readers: list[_TableReader] | None = None

    def read(self, connection: Connection) -> PendingBatch | None:
        """The next batch of at most `rows` rows, and of 32 MB of texts or one row; None at the end.

        Raises:
            TargetTableError: a text is no UTF-8 and cannot be made into it, as a database of another encoding may have it.
        """
        try:
            return self._read(connection)
        except DBAPIError as error:
            if not isinstance(error.orig, (CharacterNotInRepertoire, UntranslatableCharacter)):
                raise
            raise TargetTableError(
                f"a text of {self._target} is no UTF-8, which every model reads: {error.orig.diag.message_primary}",
                state="what was committed is kept, the row waits for its vector",
                next_step="SHOW server_encoding tells the database's encoding, which lets such a text pass: correct it, or leave "
                "its row out by TARGET_WHERE; then run the backfill again",
            ) from error

    def _read(self, connection: Connection) -> PendingBatch | None:
        if self._readers is None:
            self._readers = [
                _TableReader(table, self._column, self._rows, self._id_range)
                for table in stored_tables(connection, self._target)
            ]
        while self._readers:
            batch = self._readers[0].read(connection)
            if batch is not None:
                return batch
            del self._readers[0]
        return None


class _Place(NamedTuple):
    """Where a row was, in which page, and the bytes of its text."""

    tid: str
    block: int
    bytes: int


class _TableReader:
    """Reads one table that holds its rows itself.

    Where the index of pending rows is there, few are left: they come through it, by id. Otherwise they come in turns of the
    pages, window by window: of the table's pages, or of the ids of a range. A row that the application moves meanwhile is
    left to the next pass.
    """

    def __init__(self, target: TargetTable, column: str, rows: int, id_range: IdRange | None = None) -> None:
        self._target = target
        self._partition = target if target.whole is not None else None
        self._column = column
        self._rows = rows
        self._id_range = id_range
        self._kind: IdKind | None = None
        self._by_id: bool | None = None
        self._waits = ""
        self._places: list[_Place] = []
        self._after: Any = None
        self._next_page = 0
        self._is_at_end = False

    def read(self, connection: Connection) -> PendingBatch | None:
        """The next batch; None at the end."""
        if self._kind is None:
            self._kind = id_kind(connection, self._target)
        if self._by_id is None:
            self._waits = waits(connection, self._target)
            self._by_id = has_pending_index(connection, self._target, self._column)
        if self._by_id:
            return self._read_by_id(connection, self._kind)
        while True:
            if not self._places:
                if self._is_at_end:
                    return None
                self._places = list(self._next_window(connection, self._kind))
                continue
            rows = self._fitting_rows()
            batch = self._rows_at(connection, self._kind, self._places[:rows])
            self._places = self._places[rows:]
            if len(batch):
                return batch

    def _fitting_rows(self) -> int:
        """How many of the places that come next make a batch."""
        total = 0
        for rows, place in enumerate(self._places[: self._rows]):
            total += place.bytes
            if rows and total > _MOST_BYTES:
                return rows
        return self._rows

    def _read_by_id(self, connection: Connection, kind: IdKind) -> PendingBatch | None:
        where, values = self._where()
        ids_as_id = self._target.key.under("id").listed()
        statement = self._target.sql(
            _ROWS_BY_ID.format(where=where, identity=kind.as_it_travels, ids=ids_as_id), column=self._column
        )
        found = connection.execute(statement, values | {"rows": self._rows, "most_bytes": _MOST_BYTES}).all()
        if not found:
            return None
        ids = [kind.plain(row.identity) for row in found]
        self._after = ids[-1]
        return PendingBatch(ids, [r.version for r in found], [r.text for r in found], partition=self._partition)

    def _rows_at(self, connection: Connection, kind: IdKind, places: Sequence[_Place]) -> PendingBatch:
        statement = self._target.sql(
            _ROWS_AT.format(where=self._waits, identity=kind.as_it_travels), column=self._column
        )
        wanted = "{" + ",".join(f'"{place.tid}"' for place in places) + "}"
        found = {row.place: row for row in connection.execute(statement, {"places": wanted})}
        rows = [(found[place.tid], place.block) for place in places if place.tid in found]
        return PendingBatch(
            [kind.plain(row.identity) for row, _ in rows],
            [row.version for row, _ in rows],
            [row.text for row, _ in rows],
            [block for _, block in rows],
            self._partition,
        )

    def _next_window(self, connection: Connection, kind: IdKind) -> Iterator[_Place]:
        where, values = self._where()
        last = "NULL"
        next_page, is_at_end = self._next_page, self._is_at_end
        if self._id_range is not None:
            where += " ORDER BY {t_ids} LIMIT :window"
            values["window"] = _WINDOW_ROWS
            key = self._target.key.under("id")
            last = (
                f"last_value({key.texts()}) OVER (ORDER BY {key.listed()} "
                "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"
            )
        else:
            size = connection.execute(text(_SIZE), {"name": str(self._target)}).one()
            pages = max(_FEWEST_PAGES, int(_WINDOW_ROWS / max(size.rows_in_page, 1)))
            where += " AND ctid >= CAST(:first AS tid) AND ctid < CAST(:behind AS tid)"
            next_page += pages
            values |= {"first": f"({self._next_page},0)", "behind": f"({next_page},0)"}
            is_at_end = next_page >= size.pages
        found = connection.execute(
            self._target.sql(_TURNS.format(where=where, last=last), column=self._column), values
        ).all()
        if self._id_range is not None:
            is_at_end = len(found) < _WINDOW_ROWS
            self._after = kind.plain(found[0].last) if found else None
        self._next_page, self._is_at_end = next_page, is_at_end
        return (_Place(row.place, row.block, row.bytes) for row in found)

    def _where(self) -> tuple[str, dict[str, Any]]:
        """What makes a row pending, in the range and behind the last id."""
        where = self._waits
        values: dict[str, Any] = {}
        if self._id_range is not None:
            where += f" AND {self._id_range.condition}"
            values |= self._id_range.values
        if self._after is not None:
            where += " AND {id} > :after"
            values["after"] = self._after
        return where, values


def read_pending(
    connection: Connection, target: TargetTable, column: str, rows: int, id_range: IdRange | None = None
) -> Iterator[PendingBatch]:
    """Pending rows in batches of at most `rows`, as `PendingReader` gives them."""
    reader = PendingReader(target, column, rows, id_range)
    while (batch := reader.read(connection)) is not None:
        yield batch
