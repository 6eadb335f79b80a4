"""How much an ANN index misses: its recall against exact search, and what probes or ef_search a wanted recall takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bge_pipeline.database.connection import Database
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.database.sql import quote
from bge_pipeline.errors import TargetTableError
from bge_pipeline.quality.exact import METRICS, Neighbours, nearest_rows
from bge_pipeline.quality.recall_figures import AnnRecall, RecallPoint, RecallRecommendation
from bge_pipeline.search.column import SearchedColumn, configured_scan, read_column
from bge_pipeline.search.scan import EXACT_SCAN, INDEX_SCAN, MAX_EF_SEARCH, Session, scan_settings
from bge_pipeline.search.statements import dense_statement
from bge_pipeline.search.wire import fetch
from bge_pipeline.settings import SearchSettings, Settings

_Ranking = list[tuple[Any, float]]
"""Ids and distances, nearest first."""
_STEP = 1.5
_TIMED_EXACT_SEARCHES = 5
"""Enough for a median of what is only shown; the rankings themselves come from one pass for all queries."""
_SAME_DISTANCE = 1e-5
"""Two sums of the same products in float32 differ by less, in another order of adding."""
_ROUNDING = 1e-9
"""Of a sum of shares: a recall that is just the wanted one is not given up."""
_SAME_VECTOR = 1e-5
"""A row at this distance is the query itself, sampled from the table: finding it is no merit."""


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
    found = _exact(connection, read_column(connection, settings, column), queries, k, on_rows=on_rows)
    return [list(ids) for ids in found.ids]


def index_recalls(
    connection: Connection,
    settings: Settings,
    column: str,
    queries: NDArray[np.float32],
    k: int = 20,
    *,
    sessions: Sequence[Session] = (),
) -> list[float]:
    """Mean recall@k of the column's ANN index against exact search, as Retriever searches it and in other sessions.

    All are 1 without an index. Other arguments are those of `exact_ranking`. Stored vectors may serve as queries: they do
    not count as found.
    """
    searched = read_column(connection, settings, column)
    ways = [configured_scan(searched, settings, k), *sessions]
    if searched.index is None:
        return [1.0 for _ in ways]
    exact = _exact_but_itself(connection, searched, queries, k)
    return [_recall(exact, _rankings(connection, searched, INDEX_SCAN | way, queries, k)[0]) for way in ways]


def recall_at_k(
    database: Database,
    settings: Settings,
    queries: NDArray[np.float32] | None = None,
    *,
    column: str | None = None,
    k: int = 20,
    samples: int = 100,
) -> AnnRecall:
    """Recall of the index, and what it saves.

    Args:
        database: where the target table is.
        settings: they name it; SEARCH_PROBES and SEARCH_EF_SEARCH apply.
        queries: float32 (n, dimensions); None: `samples` stored vectors. A vector that is its own query does not count.
        column: None stands for TARGET_EMBEDDING_COLUMN.
        k: neighbours.
        samples: stored vectors to take.

    Raises:
        TargetTableError: there is no such column, or no vector in it.
    """
    with database.autocommit() as connection:
        searched = read_column(connection, settings, column)
        return _measure(connection, settings, searched, _queries(connection, searched, queries, samples), k)


def recommend_for_recall(
    database: Database,
    settings: Settings,
    wanted: float = 0.95,
    queries: NDArray[np.float32] | None = None,
    *,
    column: str | None = None,
    k: int = 20,
    samples: int = 100,
    gives_up_early: bool = False,
) -> RecallRecommendation | None:
    """The least probes (IVFFlat) or ef_search (HNSW) with at least the `wanted` recall; None without such an index.

    Args:
        wanted: mean recall@k.
        gives_up_early: ask no more queries at a value that cannot reach it whatever they find. The answer is the same; the
            recall of the values that do not suffice is that of the queries that were asked.
        database, settings, queries, column, k, samples: as for `recall_at_k`, and so are the errors.
    """
    with database.autocommit() as connection:
        searched = read_column(connection, settings, column)
        if searched.index is None or searched.index.method not in ("ivfflat", "hnsw"):
            return None
        is_ivfflat = searched.index.method == "ivfflat"
        queries = _queries(connection, searched, queries, samples)
        exact = _exact_but_itself(connection, searched, queries, k)
        points = []
        highest = max(1, searched.index.lists) if is_ivfflat else MAX_EF_SEARCH
        for value in _ladder(1 if is_ivfflat else k, highest):
            session = INDEX_SCAN | scan_settings(searched.index, searched.pgvector, k, probes=value, ef_search=value)
            least = wanted if gives_up_early and value < highest else 0.0
            points.append(RecallPoint(value, *_tried(connection, searched, session, queries, k, exact, least)))
            if points[-1].recall >= wanted:
                break
    defaults = scan_settings(searched.index, searched.pgvector, settings.rerank_top_k)
    return RecallRecommendation(
        setting="SEARCH_PROBES" if is_ivfflat else "SEARCH_EF_SEARCH",
        value=points[-1].value,
        default=int(defaults["ivfflat.probes" if is_ivfflat else "hnsw.ef_search"]),
        reached=points[-1].recall >= wanted,
        wanted=wanted,
        points=tuple(points),
    )


def _measure(
    connection: Connection, settings: SearchSettings, searched: SearchedColumn, queries: NDArray[np.float32], k: int
) -> AnnRecall:
    session = configured_scan(searched, settings, k)
    _, exact_ms = _rankings(connection, _unindexed(searched), EXACT_SCAN, queries[:_TIMED_EXACT_SEARCHES], k)
    if searched.index is None:
        return AnnRecall(1.0, k, len(queries), None, session, exact_ms, exact_ms)
    exact = _exact_but_itself(connection, searched, queries, k)
    found, index_ms = _rankings(connection, searched, INDEX_SCAN | session, queries, k)
    return AnnRecall(_recall(exact, found), k, len(queries), str(searched.index), session, exact_ms, index_ms)


def _rankings(
    connection: Connection, searched: SearchedColumn, session: Session, queries: NDArray[np.float32], k: int
) -> tuple[list[_Ranking], float]:
    """Each query's neighbours other than itself, and median milliseconds."""
    rankings, milliseconds = [], []
    for query in queries:
        started = time.perf_counter()
        found = _search(connection, searched, session, query, k + 1)
        milliseconds.append((time.perf_counter() - started) * 1e3)
        rankings.append(_but_itself(found, searched, k))
    return rankings, statistics.median(milliseconds)


def _tried(
    connection: Connection,
    searched: SearchedColumn,
    session: Session,
    queries: NDArray[np.float32],
    k: int,
    exact: list[_Ranking],
    least: float,
) -> tuple[float, float]:
    """Mean recall and median milliseconds, of as many queries as it takes to know that the recall is below `least`."""
    counted = sum(bool(true) for true in exact)
    missed: list[float] = []
    milliseconds = []
    for query, true in zip(queries, exact, strict=True):
        rankings, took = _rankings(connection, searched, session, query[None], k)
        milliseconds.append(took)
        if true:
            missed.append(1.0 - _recall([true], rankings))
        if sum(missed) > (1.0 - least) * counted + _ROUNDING:
            break
    return 1.0 - (statistics.fmean(missed) if missed else 0.0), statistics.median(milliseconds)


def _exact(
    connection: Connection,
    searched: SearchedColumn,
    queries: NDArray[np.float32],
    k: int,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> Neighbours:
    """The exact neighbours: in one pass where a matrix product gives the metric, else query by query."""
    searched = _unindexed(searched)
    if searched.metric in METRICS:
        return nearest_rows(connection, searched, queries, k, on_rows=on_rows)
    found = [_search(connection, searched, EXACT_SCAN, query, k) for query in queries]
    return Neighbours(
        [[i for i, _ in rows] for rows in found], [np.array([d for _, d in r], np.float32) for r in found]
    )


def _exact_but_itself(
    connection: Connection, searched: SearchedColumn, queries: NDArray[np.float32], k: int
) -> list[_Ranking]:
    found = _exact(connection, searched, queries, k + 1)
    rows = [list(zip(ids, near.tolist(), strict=True)) for ids, near in zip(found.ids, found.distances, strict=True)]
    return [_but_itself(ranking, searched, k) for ranking in rows]


def _but_itself(ranking: _Ranking, searched: SearchedColumn, k: int) -> _Ranking:
    return [(i, distance) for i, distance in ranking if distance > _SAME_VECTOR or searched.metric == "ip"][:k]


def _recall(exact: list[_Ranking], found: list[_Ranking]) -> float:
    """Mean share of the k nearest that were found; a row as near as the k-th counts, whichever of several equal ones it is.

    As https://github.com/erikbern/ann-benchmarks measures it: rows with one text have one vector, and each is as good.
    """
    shares = []
    for true, ranking in zip(exact, found, strict=True):
        if true:
            ids, farthest = {id_as_text(i) for i, _ in true}, true[-1][1] + _SAME_DISTANCE
            hits = sum(id_as_text(i) in ids or distance <= farthest for i, distance in ranking)
            shares.append(min(1.0, hits / len(true)))
    return statistics.fmean(shares) if shares else 1.0


def _search(
    connection: Connection, searched: SearchedColumn, session: Session, query: NDArray[np.float32], k: int
) -> _Ranking:
    rows = fetch(connection, session, dense_statement(searched, query, k))
    ids = map(searched.identity.value, rows)
    return [(identity, row.distance) for identity, row in zip(ids, rows, strict=True) if identity is not None]


def _unindexed(searched: SearchedColumn) -> SearchedColumn:
    """The column itself, compared as the index would compare it: what an index of float16 loses counts as a miss."""
    if searched.index is None:
        return searched
    column = searched.column
    index = replace(searched.index, expression=quote(column.name), element=column.type_name)
    return replace(searched, index=index)


def _queries(
    connection: Connection, searched: SearchedColumn, queries: NDArray[np.float32] | None, samples: int
) -> NDArray[np.float32]:
    if queries is not None:
        return queries
    name = searched.column.name
    sample = sample_vectors(connection, searched.target, [name], samples)
    if not len(sample):
        raise TargetTableError(f"{searched} holds no vectors to measure recall with")
    return sample.vectors[name]


def _ladder(lowest: int, highest: int) -> Iterator[int]:
    """Ascending values, each about half as large again as the one before."""
    value = min(lowest, highest)
    while value < highest:
        yield value
        value = max(value + 1, int(value * _STEP))
    yield highest
