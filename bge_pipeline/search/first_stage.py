"""The first stage of a search: what was asked, the statement for it, and its rows as candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, Select

from bge_pipeline.search.column import SearchedColumn
from bge_pipeline.search.query import ParsedQuery
from bge_pipeline.search.results import RerankMode, SearchMode, SearchResult
from bge_pipeline.search.scan import MAX_EF_SEARCH, Session, iterates
from bge_pipeline.search.statements import dense_statement, hybrid_statement, lexical_statement


@dataclass(frozen=True)
class Request:
    """A search that was asked for, with its defaults filled in.

    Attributes:
        parsed: what was typed, as a whole and taken apart.
        mode, top_k, rerank, where, columns, explain: as `Retriever.search` has them.
        depth: candidates wanted of each list.
    """

    parsed: ParsedQuery
    mode: SearchMode
    top_k: int
    depth: int
    rerank: RerankMode
    where: ColumnElement[bool] | None
    columns: tuple[str, ...]
    explain: bool


@dataclass(frozen=True)
class Found:
    """What the first stage found, and how.

    Attributes:
        searched: the column.
        session: run-time parameters of the search.
        candidates: best first.
        warnings: what went wrong without stopping it.
        plan: the server's, if it was asked for.
        encode_seconds, database_seconds: where the time went.
    """

    searched: SearchedColumn
    session: Session
    candidates: Sequence[SearchResult]
    warnings: tuple[str, ...]
    plan: tuple[str, ...]
    encode_seconds: float
    database_seconds: float


def statement_for(
    searched: SearchedColumn, request: Request, vector: NDArray[np.float32] | None, limit: int
) -> Select[Any]:
    """The statement for a request; `vector` is float32 (dimensions,), None for a search by words alone."""
    if vector is None:
        return lexical_statement(searched, request.parsed, limit, where=request.where, columns=request.columns)
    if request.mode == "dense":
        return dense_statement(searched, vector, limit, where=request.where, columns=request.columns)
    return hybrid_statement(
        searched, vector, request.parsed, request.depth, limit, where=request.where, columns=request.columns
    )


def shortfall(searched: SearchedColumn, request: Request, session: Session, found: int) -> str | None:
    """Why a dense search by HNSW with a condition may have missed rows, and what to set; None where it cannot have."""
    has_condition = request.where is not None or searched.target.condition is not None
    if request.mode != "dense" or found >= request.top_k or not has_condition:
        return None
    if searched.index is None or searched.index.method != "hnsw":
        return None
    if iterates(searched.pgvector):
        seen, setting = searched.max_scan_tuples, "hnsw.max_scan_tuples"
        remedy = (
            "raise it for the role (ALTER ROLE ... SET), and hnsw.scan_mem_multiplier where memory ends the scan before"
        )
    else:
        seen, setting = int(session["hnsw.ef_search"]), "hnsw.ef_search"
        remedy = f"raise SEARCH_EF_SEARCH, up to {MAX_EF_SEARCH:,}, or update pgvector to 0.8, whose scans go on"
    if searched.estimated_rows <= seen:
        return None
    return (
        f"found {found} of {request.top_k} rows, and more may pass the condition: a scan of {searched.index.name} ends after "
        f"{setting} = {seen:,} of about {searched.estimated_rows:,} rows; {remedy}, or index the rows of the condition alone"
    )


def results_of(searched: SearchedColumn, rows: Sequence[Row[Any]], columns: Sequence[str]) -> list[SearchResult]:
    """Rows of such a statement as results, `columns` being those asked for."""
    behind_the_id = 1 + len(searched.identity.columns)
    found = []
    for row in rows:
        identifier = searched.identity.value(row)
        if identifier is None:
            continue
        text, score, distance, dense_rank, lexical_score, lexical_rank, *wanted = row[behind_the_id:]
        found.append(
            SearchResult(
                id=identifier,
                text="" if text is None else text,
                score=score,
                columns=dict(zip(columns, wanted, strict=True)),
                dense_rank=dense_rank,
                lexical_rank=lexical_rank,
                distance=distance,
                lexical_score=lexical_score,
            )
        )
    return found
