"""How much an ANN index misses: its recall against exact search, and what probes or ef_search a wanted recall takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bge_pipeline.database.connection import Database
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.errors import TargetTableError
from bge_pipeline.quality.recall_figures import AnnRecall, RecallPoint, RecallRecommendation
from bge_pipeline.quality.recall_queries import (
    Ranking,
    RecallQueries,
    but_itself,
    sampled_queries,
    searched_by,
    without_index,
)
from bge_pipeline.search.column import SearchedColumn, configured_scan, read_column
from bge_pipeline.search.scan import EXACT_SCAN, INDEX_SCAN, MAX_EF_SEARCH, Session, scan_settings
from bge_pipeline.settings import SearchSettings, Settings

_STEP = 1.5
_TIMED_EXACT_SEARCHES = 5
"""Enough for a median of what is only shown; the rankings themselves come from one pass for all queries."""
_SAME_DISTANCE = 1e-5
"""Two sums of the same products in float32 differ by less, in another order of adding."""
_ROUNDING = 1e-9
"""Of a sum of shares: a recall that is just the wanted one is not given up."""


def index_recall(
    connection: Connection,
    settings: Settings,
    searched: SearchedColumn,
    queries: RecallQueries,
    session: Session | None = None,
) -> float:
    """Mean recall of the column's ANN index against exact search; 1 without an index.

    Args:
        connection: an autocommit connection.
        settings: SEARCH_PROBES and SEARCH_EF_SEARCH apply.
        searched: the column.
        queries: what the index is asked for.
        session: what to search with; None: as Retriever searches.
    """
    if searched.index is None:
        return 1.0
    if session is None:
        session = configured_scan(searched, settings, queries.k)
    exact = queries.exact(connection, searched)
    return _recall(exact, _rankings(connection, searched, INDEX_SCAN | session, queries.vectors, queries.k)[0])


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
        if queries is None:
            queries = _stored_vectors(connection, searched, samples)
        return _measure(connection, settings, searched, RecallQueries(queries, k))


def recommend_for_recall(
    database: Database,
    settings: Settings,
    wanted: float = 0.95,
    queries: NDArray[np.float32] | None = None,
    *,
    column: str | None = None,
    k: int = 20,
    samples: int = 100,
) -> RecallRecommendation | None:
    """The least probes (IVFFlat) or ef_search (HNSW) with at least the `wanted` recall; None without such an index.

    Args:
        wanted: mean recall@k.
        database, settings, queries, column, k, samples: as for `recall_at_k`, and so are the errors.
    """
    with database.autocommit() as connection:
        searched = read_column(connection, settings, column)
        if searched.effort is None:
            return None
        if queries is None:
            queries = _stored_vectors(connection, searched, samples)
        return least_effort(connection, settings, searched, RecallQueries(queries, k), wanted)


def _stored_vectors(connection: Connection, searched: SearchedColumn, samples: int) -> NDArray[np.float32]:
    queries = sampled_queries(connection, searched, samples)
    if not len(queries):
        raise TargetTableError(f"{searched} holds no vectors to measure recall with")
    return queries


def least_effort(
    connection: Connection,
    settings: Settings,
    searched: SearchedColumn,
    queries: RecallQueries,
    wanted: float,
    *,
    quickly: bool = False,
) -> RecallRecommendation:
    """The least probes or ef_search with at least the `wanted` recall, of an index that has one.

    Args:
        connection: an autocommit connection.
        settings: RERANK_TOP_K decides what is searched with where nobody says it.
        searched: the column.
        queries: what the index is asked for.
        wanted: mean recall.
        quickly: try nothing below what is searched with where nobody says it, and ask no more queries at a value that cannot
            suffice whatever they find: its recall is that of those that were asked.
    """
    assert searched.index is not None
    assert searched.effort is not None
    is_ivfflat = searched.index.method == "ivfflat"
    defaults = scan_settings(searched.index, searched.pgvector, settings.rerank_top_k)
    default = int(defaults[searched.effort])
    lowest = default if quickly else 1 if is_ivfflat else queries.k
    highest = max(1, searched.index.lists) if is_ivfflat else MAX_EF_SEARCH
    points: list[RecallPoint] = []
    missed: dict[int, float] = {}
    for value in _ladder(lowest, highest):
        session = INDEX_SCAN | scan_settings(
            searched.index, searched.pgvector, queries.k, probes=value, ef_search=value
        )
        least = wanted if quickly and value < highest else 0.0
        points.append(RecallPoint(value, *_tried(connection, searched, session, queries, least, missed)))
        if points[-1].recall >= wanted:
            break
    return RecallRecommendation(
        setting="SEARCH_PROBES" if is_ivfflat else "SEARCH_EF_SEARCH",
        value=points[-1].value,
        default=default,
        reached=points[-1].recall >= wanted,
        wanted=wanted,
        points=tuple(points),
    )


def _measure(
    connection: Connection, settings: SearchSettings, searched: SearchedColumn, queries: RecallQueries
) -> AnnRecall:
    vectors, k = queries.vectors, queries.k
    session = configured_scan(searched, settings, k)
    _, exact_ms = _rankings(connection, without_index(searched), EXACT_SCAN, vectors[:_TIMED_EXACT_SEARCHES], k)
    if searched.index is None:
        return AnnRecall(1.0, k, len(vectors), None, session, exact_ms, exact_ms)
    exact = queries.exact(connection, searched)
    found, index_ms = _rankings(connection, searched, INDEX_SCAN | session, vectors, k)
    return AnnRecall(_recall(exact, found), k, len(vectors), str(searched.index), session, exact_ms, index_ms)


def _rankings(
    connection: Connection, searched: SearchedColumn, session: Session, queries: NDArray[np.float32], k: int
) -> tuple[list[Ranking], float]:
    """Each query's neighbours other than itself, and median milliseconds."""
    rankings, milliseconds = [], []
    for query in queries:
        started = time.perf_counter()
        found = searched_by(connection, searched, session, query, k + 1)
        milliseconds.append((time.perf_counter() - started) * 1e3)
        rankings.append(but_itself(found, searched, k))
    return rankings, statistics.median(milliseconds)


def _tried(
    connection: Connection,
    searched: SearchedColumn,
    session: Session,
    queries: RecallQueries,
    least: float,
    missed: dict[int, float],
) -> tuple[float, float]:
    """Mean recall and median milliseconds, of as many queries as it takes to know that the recall is below `least`.

    `missed` has the share of its neighbours that each query missed the last time it was asked. Those that missed most are asked
    first, since they decide soonest.
    """
    exact = [(number, true) for number, true in enumerate(queries.exact(connection, searched)) if true]
    usual = statistics.fmean(missed.values()) if missed else 0.0
    exact.sort(key=lambda numbered: -missed.get(numbered[0], usual))
    now: dict[int, float] = {}
    milliseconds = []
    for number, true in exact:
        rankings, took = _rankings(connection, searched, session, queries.vectors[number : number + 1], queries.k)
        milliseconds.append(took)
        now[number] = 1.0 - _recall([true], rankings)
        if sum(now.values()) > (1.0 - least) * len(exact) + _ROUNDING:
            break
    missed.update(now)
    if not now:
        return 1.0, 0.0
    return 1.0 - statistics.fmean(now.values()), statistics.median(milliseconds)


def _recall(exact: list[Ranking], found: list[Ranking]) -> float:
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


def _ladder(lowest: int, highest: int) -> Iterator[int]:
    """Ascending values, each about half as large again as the one before."""
    value = min(lowest, highest)
    while value < highest:
        yield value
        value = max(value + 1, int(value * _STEP))
    yield highest
