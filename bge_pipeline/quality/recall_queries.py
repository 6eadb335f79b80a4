"""What an ANN index is asked for to measure its recall: vectors, and their exact neighbours from one pass over the column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.database.sql import quote
from bge_pipeline.quality.exact import METRICS, Neighbours, nearest_rows
from bge_pipeline.search.column import SearchedColumn, read_column
from bge_pipeline.search.scan import EXACT_SCAN, Session
from bge_pipeline.search.statements import dense_statement
from bge_pipeline.search.wire import fetch
from bge_pipeline.settings import Settings

Ranking = list[tuple[Any, float]]
"""Ids and distances, nearest first."""
_SAME_VECTOR = 1e-5
"""A row at this distance is the query itself, sampled from the table: finding it is no merit."""


@dataclass
class RecallQueries:
    """Vectors that an index is asked for, and what it should find: looked up in one pass over the column, once.

    Attributes:
        vectors: float32 (n, dimensions). Stored ones may serve: they do not count as found.
        k: neighbours of each.
    """

    vectors: NDArray[np.float32]
    k: int = 20
    _exact: list[Ranking] | None = field(default=None, repr=False)

    def exact(self, connection: Connection, searched: SearchedColumn) -> list[Ranking]:
        """Ids and distances of the k nearest rows of each."""
        if self._exact is None:
            found = _exact_neighbours(connection, searched, self.vectors, self.k + 1)
            rows = [
                list(zip(ids, near.tolist(), strict=True)) for ids, near in zip(found.ids, found.distances, strict=True)
            ]
            self._exact = [but_itself(ranking, searched, self.k) for ranking in rows]
        return self._exact

    def dealt(self, connection: Connection, searched: SearchedColumn) -> tuple[RecallQueries, RecallQueries]:
        """Two halves of them, with what each should find: a choice that is made by one is judged by the other."""
        exact = self.exact(connection, searched)
        first, second = (RecallQueries(self.vectors[n::2], self.k, exact[n::2]) for n in range(2))
        return first, second


def exact_ranking(
    connection: Connection,
    settings: Settings,
    column: str,
    queries: NDArray[np.float32],
    k: int = 20,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> list[list[Any]]:
    """Ids of the k rows of `column` that are nearest to each query, nearest first, every row compared in one pass.

    Args:
        connection: an autocommit connection.
        settings: they name the target table.
        column: a vector column of it.
        queries: float32 (n, dimensions).
        k: neighbours.
        on_rows: told how many rows have been compared so far.
    """
    found = _exact_neighbours(connection, read_column(connection, settings, column), queries, k, on_rows=on_rows)
    return [list(ids) for ids in found.ids]


def sampled_queries(connection: Connection, searched: SearchedColumn, samples: int) -> NDArray[np.float32]:
    """Stored vectors of the column, float32 (`samples` or fewer, dimensions); none of an empty one."""
    name = searched.column.name
    return sample_vectors(connection, searched.target, [name], samples).vectors[name]


def searched_by(
    connection: Connection, searched: SearchedColumn, session: Session, query: NDArray[np.float32], k: int
) -> Ranking:
    """The k rows that the server finds for one query in such a session."""
    rows = fetch(connection, session, dense_statement(searched, query, k))
    ids = map(searched.identity.value, rows)
    return [(identity, row.distance) for identity, row in zip(ids, rows, strict=True) if identity is not None]


def but_itself(ranking: Ranking, searched: SearchedColumn, k: int) -> Ranking:
    """The k nearest without the row that was the query."""
    return [(i, distance) for i, distance in ranking if distance > _SAME_VECTOR or searched.metric == "ip"][:k]


def without_index(searched: SearchedColumn) -> SearchedColumn:
    """The column itself, compared as the index would compare it: what an index of float16 loses counts as a miss."""
    if searched.index is None:
        return searched
    column = searched.column
    index = replace(searched.index, expression=quote(column.name), element=column.type_name)
    return replace(searched, index=index)


def _exact_neighbours(
    connection: Connection,
    searched: SearchedColumn,
    queries: NDArray[np.float32],
    k: int,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> Neighbours:
    """The exact neighbours: in one pass where a matrix product gives the metric, else query by query."""
    searched = without_index(searched)
    if searched.metric in METRICS:
        return nearest_rows(connection, searched, queries, k, on_rows=on_rows)
    found = [searched_by(connection, searched, EXACT_SCAN, query, k) for query in queries]
    return Neighbours(
        [[i for i, _ in rows] for rows in found], [np.array([d for _, d in r], np.float32) for r in found]
    )
