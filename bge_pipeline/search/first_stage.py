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
from bge_pipeline.search.scan import Session
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
