"""Exact search for many queries at once: every row is read one time, in binary, and compared in blocks by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bge_pipeline.database.binary_copy import HEADER, TRAILER, id_fields, names_of_id_fields, run_copy
from bge_pipeline.database.ids import Id, IdKind
from bge_pipeline.database.sql import Written, quote, render
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.quality.metrics import to_unit_length
from bge_pipeline.search.column import SearchedColumn

METRICS = ("cosine", "l2", "ip")
"""Metrics that a matrix product gives."""
_BLOCK_BYTES = 4 * 2**20
_FIELD_COUNT_BYTES = 2
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each of n queries, nearest first; fewer than asked for where the table has fewer.

    Attributes:
        ids: n lists of ids.
        distances: n arrays of pgvector's distances: 1 - cosine, Euclidean, or the negative inner product.
    """

    ids: list[list[Id]]
    distances: list[NDArray[np.float32]]


def nearest_rows(
    connection: Connection,
    searched: SearchedColumn,
    queries: NDArray[np.float32],
    k: int,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> Neighbours:
    """The k rows nearest to each query by the metric of the column, all rows compared in one pass.

    Memory is a block of rows and the best so far, whatever the table holds. Ties are broken by the order of the table.

    Args:
        connection: an autocommit connection.
        searched: the column; its metric must be one of `METRICS`.
        queries: float32 (n, dimensions); rows of other dimensions in an untyped column are left out.
        k: neighbours.
        on_rows: told how many rows have been compared so far.

    Raises:
        BgePipelineError: the server sent what is no binary COPY.
        DBAPIError: the server refused it, or the connection broke.
    """
    best = _Best(queries, k, searched.metric)
    stream = _RowStream(searched.id_kind, queries.shape[1], best.compare, on_rows)
    columns = zip(searched.target.id_columns, searched.id_kind.parts, strict=True)
    statement = searched.target.sql(
        "COPY (SELECT {key}, {column}::vector FROM {table} "
        "WHERE {in_part} AND {column} IS NOT NULL AND vector_dims({column}::vector) = {dimensions}) TO STDOUT (FORMAT binary)",
        key=Written(", ".join(f"{quote(name)}::{part.sql_type}" for name, part in columns)),
        column=searched.column.name,
        dimensions=queries.shape[1],
    )
    run_copy(connection, render(statement), stream)
    stream.finish()
    return best.neighbours()


class _Best:
    """The best k rows of each query among those compared so far."""

    def __init__(self, queries: NDArray[np.float32], k: int, metric: str) -> None:
        self._metric = metric
        self._k = k
        self._queries: NDArray[Any] = to_unit_length(queries) if metric == "cosine" else queries
        self._without_direction = ~queries.any(axis=1)
        if metric == "l2":
            self._queries = queries.astype(np.float64)
        self._scores: NDArray[Any] = np.empty((len(queries), 0), np.float32)
        self._ids: NDArray[np.object_] = np.empty((len(queries), 0), object)

    def compare(self, ids: Sequence[Id], rows: NDArray[np.float32]) -> None:
        """Take a block of rows in: the greater the score, the nearer."""
        if self._metric == "cosine":
            scores = self._queries @ to_unit_length(rows).T
            # Without direction: pgvector's distance is NaN, which sorts last.
            scores[:, ~rows.any(axis=1)] = -np.inf
            scores[self._without_direction] = -np.inf
        elif self._metric == "l2":
            wide = rows.astype(np.float64)  # in float32 the difference of nearly equal squares would be all rounding
            scores = 2 * self._queries @ wide.T - np.einsum("ij,ij->i", wide, wide)
        else:
            scores = self._queries @ rows.T
        found: NDArray[np.object_] = np.empty(len(ids), object)
        found[:] = ids
        scores = np.concatenate([self._scores, scores], axis=1)
        if scores.shape[1] > self._k:
            chosen = np.sort(np.argpartition(-scores, self._k - 1, axis=1)[:, : self._k], axis=1)
        else:
            chosen = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        kept = self._ids.shape[1]
        old = np.take_along_axis(self._ids, np.minimum(chosen, max(kept - 1, 0)), axis=1) if kept else None
        new = found[np.maximum(chosen - kept, 0)]
        self._ids = new if old is None else np.where(chosen < kept, old, new)
        self._scores = np.take_along_axis(scores, chosen, axis=1)

    def neighbours(self) -> Neighbours:
        """The result, nearest first."""
        order = np.argsort(-self._scores, axis=1, kind="stable")
        scores = np.take_along_axis(self._scores, order, axis=1)
        ids = np.take_along_axis(self._ids, order, axis=1)
        present = np.isfinite(scores)
        return Neighbours(
            [list(row[there]) for row, there in zip(ids, present, strict=True)],
            [row[there] for row, there in zip(self._distances(scores), present, strict=True)],
        )

    def _distances(self, scores: NDArray[Any]) -> NDArray[np.float32]:
        if self._metric == "cosine":
            return np.asarray(1 - scores, np.float32)
        if self._metric == "l2":
            squares = np.einsum("ij,ij->i", self._queries, self._queries)[:, None] - scores
            return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float32)
        return np.asarray(-scores, np.float32)


class _RowStream:
    """What COPY writes to: rows of an id and a vector of fixed length, handed on in blocks."""

    def __init__(
        self,
        kind: IdKind,
        dimensions: int,
        take: Callable[[Sequence[Id], NDArray[np.float32]], None],
        on_rows: Callable[[int], None] | None,
    ) -> None:
        self._kind = kind
        self._take = take
        self._on_rows = on_rows
        vector = [("vector_length", ">i4"), ("dimensions", ">i2"), ("unused", ">i2"), ("values", ">f4", (dimensions,))]
        # Ids of no fixed length are taken out of the rows one by one, the vectors behind them together.
        fields = id_fields(kind)
        self._has_fixed_length = fields is not None
        self._row = np.dtype([*(fields or ()), *vector])
        self._buffer = bytearray()
        self._has_header = False
        self._rows = 0

    def write(self, chunk: bytes) -> int:
        """Take bytes from the server."""
        self._buffer += chunk
        if not self._has_header and len(self._buffer) >= len(HEADER):
            del self._buffer[: len(HEADER)]
            self._has_header = True
        if len(self._buffer) >= _BLOCK_BYTES:
            self._hand_on()
        return len(chunk)

    def finish(self) -> None:
        """Hand on the last rows."""
        self._hand_on()
        if bytes(self._buffer) != TRAILER:
            raise BgePipelineError(f"expected the end of a binary COPY, got {len(self._buffer)} bytes")

    def _hand_on(self) -> None:
        taken = self._taken() if self._has_fixed_length else self._taken_one_by_one()
        if taken is None:
            return
        ids, rows = taken
        self._take(ids, rows["values"].astype(np.float32))
        self._rows += len(ids)
        if self._on_rows is not None:
            self._on_rows(self._rows)

    def _taken(self) -> tuple[list[Id], NDArray[Any]] | None:
        """The whole rows that are there, ids and vectors; None where there is none."""
        size = len(self._buffer) // self._row.itemsize * self._row.itemsize
        if not size:
            return None
        rows = np.frombuffer(bytes(self._buffer[:size]), self._row)
        del self._buffer[:size]
        return self._ids([rows[name] for name in names_of_id_fields(self._kind)]), rows

    def _taken_one_by_one(self) -> tuple[list[Id], NDArray[Any]] | None:
        """The same where ids differ in length: field count, and length and value of each column, stand before each vector."""
        data, place = bytes(self._buffer), 0
        ids: list[list[bytes]] = []
        vectors = []
        while len(data) - place > len(TRAILER):
            identity, vector = self._identity_at(data, place + _FIELD_COUNT_BYTES)
            if len(data) < vector + self._row.itemsize:
                break
            ids.append(identity)
            place = vector + self._row.itemsize
            vectors.append(data[vector:place])
        if not ids:
            return None
        del self._buffer[:place]
        return self._ids(list(zip(*ids, strict=True))), np.frombuffer(b"".join(vectors), self._row)

    def _identity_at(self, data: bytes, place: int) -> tuple[list[bytes], int]:
        """The values that begin there, one of each column, and where they end: beyond the data where they are not whole."""
        values = []
        for _ in self._kind.parts:
            start = place + _LENGTH_BYTES
            place = start + int.from_bytes(data[place:start], "big") if start <= len(data) else len(data) + 1
            values.append(data[start:place])
        return values, place

    def _ids(self, columns: Sequence[Any]) -> list[Id]:
        parts = zip(self._kind.parts, columns, strict=True)
        return self._kind.from_columns([part.from_binary(values) for part, values in parts])
