"""How searches of the old and of the new column perform: milliseconds, recall of the index, nDCG on judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sampling import SampledRows, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.index_recall import index_recall
from bge_pipeline.quality.judgements import JudgedQueries, load_judged_queries
from bge_pipeline.quality.known_items import excerpts
from bge_pipeline.quality.measure import NEIGHBOURS
from bge_pipeline.quality.recall_queries import RecallQueries
from bge_pipeline.quality.search_quality import ask_each, measure_search, p50_and_p95
from bge_pipeline.quality.stored_vectors import StoredVectors
from bge_pipeline.quality.time_limit import deadline_in, in_time
from bge_pipeline.search import RerankMode, Retriever, SearchMode
from bge_pipeline.search.column import SearchedColumn, read_column
from bge_pipeline.settings import Settings
from bge_pipeline.space import EmbeddingSpace

_QUERIES = 50
_SECONDS = 15.0
"""For one way of searching: where each search takes long (no index, a cross-encoder), as many queries are timed as fit."""
_WARMING_SECONDS = 5.0
"""Of a column with an index: the same queries untimed, so that no column is timed on a colder cache than the other."""
MOST_COMPARED_ROWS = 1_000_000
"""Without a vector index every search compares all of the table's vectors, a second or more for a million of them."""
MOST_PARSED_ROWS = 100_000
"""Without an index of words every search takes all of the table's texts apart, some seconds for so many."""


@dataclass(frozen=True)
class SearchRun:
    """One way of searching, timed query by query.

    Attributes:
        column: whether the old or the new vectors were searched.
        mode: how candidates were found.
        reranked: whether a cross-encoder put them in order.
        queries: how many were timed.
        p50_milliseconds, p95_milliseconds: from the query to its results, encoding included where `encodes` is true.
        encodes: whether the query's vector was made within the time.
        recall: share of the exact 20 nearest that came back; None where nothing exact is compared.
        ndcg: nDCG@20 on labelled queries; None without them.
        index: name and method of the vector index on the column; None where every row was compared.
    """

    column: Literal["old", "new"]
    mode: SearchMode
    reranked: bool
    queries: int
    p50_milliseconds: float
    p95_milliseconds: float
    encodes: bool
    recall: float | None = None
    ndcg: float | None = None
    index: str | None = None

    def is_like(self, other: SearchRun) -> bool:
        """Whether the milliseconds of both are of one kind: by an index or without, the query encoded or beforehand."""
        return self.encodes == other.encodes and (self.index is None) == (other.index is None)

    @property
    def words(self) -> tuple[str, ...]:
        """Which column was searched and by which means, word by word."""
        return (self.column, self.mode, "reranked") if self.reranked else (self.column, self.mode)

    @property
    def name(self) -> str:
        """The same for people: `new hybrid, reranked`."""
        return f"{self.column} {self.mode}" + ", reranked" * self.reranked


@dataclass(frozen=True)
class SearchedColumns:
    """The columns that are timed.

    Attributes:
        target: their table.
        old, new: names of the two; None where there is none.
        old_space: the old column's embedding space, None where nobody recorded it.
        old_encoder: the old column's model, None where it is not at hand.
        new_recall: what was found of the new column's index, None where nobody looked.
    """

    target: TargetTable
    old: str | None
    new: str | None
    old_space: EmbeddingSpace | None
    old_encoder: QueryEncoder | None
    new_recall: float | None


def search_runs(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    columns: SearchedColumns,
    notes: list[str],
) -> tuple[SearchRun, ...]:
    """Time each way of searching: with EVAL_QUERIES on all of its queries, else on excerpts of 50 rows.

    Args:
        database: where the table is.
        settings: those of search.
        service: the new model, and the reranker where ENABLE_RERANKER asks for one.
        columns: those to search.
        notes: what could not be measured, and why, is added here.
    """
    judged = load_judged_queries(settings.eval_queries) if settings.eval_queries is not None else None
    samples = _samples(database, columns, notes)
    runs: list[SearchRun] = []
    for column, rows in samples.items():
        runs += (
            _search_old(database, settings, columns, rows, column, judged, notes)
            if column == columns.old
            else _search_new(database, settings, service, column, judged or excerpts(rows.texts), notes)
        )
    # After all timings: exact search reads whole columns, and would leave its own in the cache.
    recalls: dict[str, float | None] = {"old": None, "new": columns.new_recall}
    for column, rows in samples.items():
        name = "old" if column == columns.old else "new"
        if recalls[name] is None:
            recalls[name] = _recall(database, settings, column, rows)
    return tuple(
        replace(run, recall=recalls[run.column]) if run.mode == "dense" and not run.reranked else run for run in runs
    )


def _samples(database: Database, columns: SearchedColumns, notes: list[str]) -> dict[str, SampledRows]:
    """Rows to ask about by the column that is searched, the old one first: the same rows of both where they have both."""
    names = [column for column in (columns.old, columns.new) if column is not None]
    if not names:
        notes.append("search was not measured: the column's type is none that is searched here")
        return {}
    with database.autocommit() as connection:
        rows = sample_vectors(connection, columns.target, names, _QUERIES)
        if len(rows):
            return dict.fromkeys(names, rows)
        alone = {name: sample_vectors(connection, columns.target, [name], _QUERIES) for name in names}
    if not any(map(len, alone.values())):
        notes.append("search was not measured: the table has no vectors")
    elif len(names) > 1:
        empty = [name for name, rows in alone.items() if not len(rows)]
        notes.extend(f"search of {name!r} was not measured: no vector of it was found" for name in empty)
    return {name: rows for name, rows in alone.items() if len(rows)}


def _recall(database: Database, settings: Settings, column: str, rows: SampledRows) -> float:
    with database.autocommit() as connection:
        searched = read_column(connection, settings, column)
        return index_recall(connection, settings, searched, RecallQueries(rows.vectors[column], NEIGHBOURS))


def _search_old(
    database: Database,
    settings: Settings,
    columns: SearchedColumns,
    rows: SampledRows,
    column: str,
    judged: JudgedQueries | None,
    notes: list[str],
) -> list[SearchRun]:
    if columns.old_encoder is not None:
        retriever = Retriever(database, settings, query_encoder=columns.old_encoder, column=column)
        return _timed(retriever, "old", judged or excerpts(rows.texts), notes)
    as_stored = settings.model_copy(update={"query_expansion": "off"})  # of an invented passage there is no vector
    stored = StoredVectors(rows, column, columns.old_space)
    found = _timed(Retriever(database, as_stored, query_encoder=stored, column=column), "old", rows.texts, notes)
    if found:
        notes.append("the old model is not at hand: the old column was searched by vectors stored in it, none encoded")
    return [replace(run, encodes=False) for run in found]


def _search_new(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    column: str,
    queries: JudgedQueries | Sequence[str],
    notes: list[str],
) -> list[SearchRun]:
    retriever = Retriever(database, settings, service, column=column)
    runs = _timed(retriever, "new", queries, notes) + _timed(retriever, "new", queries, notes, mode="hybrid")
    if settings.enable_reranker and service.reranker is not None:
        runs += _timed(retriever, "new", queries, notes, mode="hybrid", rerank="always")
    return runs


def _timed(
    retriever: Retriever,
    column: Literal["old", "new"],
    queries: JudgedQueries | Sequence[str],
    notes: list[str],
    *,
    mode: SearchMode = "dense",
    rerank: RerankMode = "never",
) -> list[SearchRun]:
    """The one run, or none and a note where it would read the whole of a large table for each query."""
    searched = retriever.check()
    found_index = searched.index
    run = SearchRun(
        column, mode, rerank != "never", 0, 0.0, 0.0, encodes=True,
        index=f"{found_index.name} ({found_index.method})" if found_index is not None else None,
    )  # fmt: skip
    reason = _too_long(searched, mode)
    if reason is not None:
        notes.append(f"{run.name} was not measured: {reason}")
        return []
    if rerank == "never":  # the reranked way comes after the same searches without a reranker
        _warm(retriever, searched, queries, mode)
    if isinstance(queries, JudgedQueries):
        judged = measure_search(retriever, queries, mode=mode, rerank=rerank, k=NEIGHBOURS, seconds=_SECONDS)
        asked = len(judged.quality.ndcg_by_query)
        run = replace(run, p50_milliseconds=judged.p50_ms, p95_milliseconds=judged.p95_ms, ndcg=judged.quality.ndcg)
    else:
        answers = list(ask_each(retriever, queries, mode=mode, rerank=rerank, k=NEIGHBOURS, seconds=_SECONDS))
        p50, p95 = p50_and_p95(answers)
        asked, run = len(answers), replace(run, p50_milliseconds=p50, p95_milliseconds=p95)
    if asked < len(queries):
        notes.append(
            f"{run.name}: {asked} of {len(queries)} queries were searched, as many as {_SECONDS:.0f} s are enough for"
        )
    return [replace(run, queries=asked)]


def _too_long(searched: SearchedColumn, mode: SearchMode) -> str | None:
    """Why no search of a live table is timed in that way, in words."""
    rows = searched.estimated_rows
    if searched.index is None and rows > MOST_COMPARED_ROWS:
        return f"no index serves {searched.column.name!r}, and each search would compare all of its {rows:,} vectors"
    if mode != "dense" and not searched.has_text_index and rows > MOST_PARSED_ROWS:
        return f"there is no index of words (bge-pipeline text-index), and each search would read all {rows:,} texts"
    return None


def _warm(
    retriever: Retriever, searched: SearchedColumn, queries: JudgedQueries | Sequence[str], mode: SearchMode
) -> None:
    if searched.index is None:
        return
    texts = queries.queries.values() if isinstance(queries, JudgedQueries) else queries
    for query in in_time(texts, deadline_in(_WARMING_SECONDS)):
        retriever.search(query, mode=mode, rerank="never", top_k=NEIGHBOURS)
