"""Retriever: the query path over the target table, right before, during and after the swap."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, Select, Table
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.reranker import ScoresPassages
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError, ConfigurationError, EmbeddingSpaceMismatch, PhaseError
from bge_pipeline.search.certainty import Certainty
from bge_pipeline.search.column import SearchedColumn, configured_scan, read_column
from bge_pipeline.search.encoders import AnyQueryEncoder, ChosenEncoder, choose_encoder
from bge_pipeline.search.expansion import ExpansionContext, QueryExpansion, expansion_from_settings
from bge_pipeline.search.explanation import explain_search
from bge_pipeline.search.first_stage import Found, Request, results_of, shortfall, statement_for
from bge_pipeline.search.query import parse_query
from bge_pipeline.search.reranking import Reranking
from bge_pipeline.search.reranking import rerank as rerank_candidates
from bge_pipeline.search.results import RerankMode, SearchMode, SearchResponse, StageSeconds
from bge_pipeline.search.scan import Session
from bge_pipeline.search.statements import nearest_vectors_statement
from bge_pipeline.search.wire import fetch, fetch_plan
from bge_pipeline.settings import Settings, settings_from_env

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
"""How often a search begins again because the column changed under it."""


class _ColumnChanged(Exception):
    """The column is no longer what the statement was built on."""


class Retriever:
    """Searches the target table. Thread-safe; make one and keep it.

    Every search compares the column with what it was built on, in the same statement: a swap or a rollback
    that happens meanwhile makes it begin again with the right encoder, or refuse.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        service: EmbeddingsService | None = None,
        *,
        query_encoder: AnyQueryEncoder | None = None,
        reranker: ScoresPassages | None = None,
        expansion: QueryExpansion | None = None,
        certainty: Certainty | None = None,
        column: str | None = None,
    ) -> None:
        """Nothing is read or loaded before the first search.

        Args:
            database: where the target table is.
            settings: among them RETURN_TOP_K, RERANK_TOP_K, SEARCH_PROBES, SEARCH_EF_SEARCH and SEARCH_LANGUAGE.
            service: the configured model; None: the process-wide one, loaded when a search needs it.
            query_encoder: encoder of the old column, for searches before the swap.
            reranker: in place of the service's.
            expansion: in place of QUERY_EXPANSION's.
            certainty: in place of the default bounds of `rerank="auto"`.
            column: another column than TARGET_EMBEDDING_COLUMN, for comparisons.
        """
        self._database = database
        self._settings = settings
        self._given_service = service
        self._query_encoder = query_encoder
        self._given_reranker = reranker
        self._expansion = expansion or expansion_from_settings(settings)
        self._certainty = certainty or Certainty()
        self._column_name = column
        self._searched: SearchedColumn | None = None

    @classmethod
    def from_env(cls) -> Retriever:
        """A retriever for the database and the model that the environment names.

        Its sessions keep the role's statement_timeout and lock_timeout.
        """
        settings = settings_from_env()
        database = Database.from_settings(settings)
        database.sessions.has_roles_limits = True
        return cls(database, settings)

    @property
    def table(self) -> Table:
        """The target table with its columns' types, to write filters with: `where=retriever.table.c.language == "en"`."""
        return (self._searched or self._read()).table

    def check(self) -> SearchedColumn:
        """Read the column anew and load its encoder, so that what is wrong shows when the application starts.

        Raises:
            EmbeddingSpaceMismatch: no encoder at hand makes vectors of the column's space.
            TargetTableError: there is no such table or column.
        """
        searched = self._read()
        self._encoder(searched)
        return searched

    def close(self) -> None:
        """Close the database's pooled connections, as an application does at its end; a further search opens new ones."""
        self._database.close()

    def search(
        self,
        query: str,
        *,
        mode: SearchMode = "dense",
        rerank: RerankMode | None = None,
        top_k: int | None = None,
        where: ColumnElement[bool] | None = None,
        columns: Sequence[str] = (),
        explain: bool = False,
    ) -> SearchResponse:
        """The rows that answer `query`, best first. A blank query finds nothing.

        Args:
            query: what a person typed. In lexical and hybrid mode `"a phrase"` must occur and `-word` must not.
            mode: dense, lexical (words alone; no encoder is needed) or hybrid (both, fused).
            rerank: always, never, or auto: when the first stage is unsure; RERANK when not given. Nothing is reranked
                without ENABLE_RERANKER.
            top_k: results; RETURN_TOP_K when not given.
            where: condition on columns of the target table.
            columns: further columns to return.
            explain: ask the server for its plan too; one more statement.

        Raises:
            EmbeddingSpaceMismatch: no encoder at hand makes vectors of the column's space.
            ConfigurationError: an unknown mode or column, or a `top_k` below 1.
            TargetTableError: there is no such table or column.
        """
        _check("mode", mode, SearchMode)
        rerank = self._settings.rerank if rerank is None else rerank
        _check("rerank", rerank, RerankMode)
        top_k = self._settings.return_top_k if top_k is None else top_k
        if top_k < 1:
            raise ConfigurationError(f"top_k: expected at least 1, got {top_k}")
        parsed = parse_query(query)
        if not parsed.typed.strip() if mode == "dense" else parsed.is_blank:
            return SearchResponse((), mode, False, (), "the query has no words to look for", StageSeconds())
        wanted_rerank = rerank if self._can_rerank else "never"
        request = Request(parsed, mode, top_k, self._depth(top_k), wanted_rerank, where, tuple(columns), explain)
        found = self._until_settled(lambda searched: self._first_stage(searched, request))
        started = time.perf_counter()
        ranking = rerank_candidates(parsed.typed, found.candidates, wanted_rerank, self._reranker, self._certainty)
        seconds = StageSeconds(found.encode_seconds, found.database_seconds, time.perf_counter() - started)
        return self._response(request, found, ranking, seconds)

    @property
    def _can_rerank(self) -> bool:
        return self._given_reranker is not None or self._settings.enable_reranker

    def _depth(self, top_k: int) -> int:
        return max(top_k, self._settings.rerank_top_k)

    def _until_settled(self, work: Callable[[SearchedColumn], Found]) -> Found:
        """Do `work` on the column as it is; again, if it turns out to have changed."""
        searched, is_fresh = self._searched or self._read(), False
        for _ in range(_ATTEMPTS):
            try:
                return work(searched)
            except _ColumnChanged:
                logger.info("%s changed; searching again", searched)
            except (EmbeddingSpaceMismatch, ConfigurationError):
                if is_fresh:  # else it may be about a column that was added since, which has no part in the signature
                    raise
            except DBAPIError:
                if self._read().signature == searched.signature:
                    raise
            searched, is_fresh = self._read(), True
        raise PhaseError(
            f"{searched} changed {_ATTEMPTS} times during one search",
            state="nothing was searched",
            next_step="search again",
        )

    def _read(self) -> SearchedColumn:
        with self._database.autocommit() as connection:
            self._searched = read_column(connection, self._settings, self._column_name)
        return self._searched

    def _first_stage(self, searched: SearchedColumn, request: Request) -> Found:
        warnings: list[str] = []
        started = time.perf_counter()
        vector = self._vector(searched, request, warnings) if request.mode != "lexical" else None
        encoded = time.perf_counter()
        limit = request.top_k if request.rerank == "never" else request.depth
        statement = statement_for(searched, request, vector, limit)
        session = self._session(searched, request.depth if request.mode == "hybrid" else limit)
        rows = self._fetch(searched, session, statement)
        ended = time.perf_counter()
        plan = self._plan(session, statement) if request.explain else ()
        candidates = results_of(searched, rows, request.columns)
        missed = shortfall(searched, request, session, len(candidates))
        if missed is not None:
            warnings.append(missed)
        return Found(
            searched,
            session,
            candidates,
            tuple(warnings),
            plan,
            encoded - started,
            ended - encoded,
        )

    def _vector(self, searched: SearchedColumn, request: Request, warnings: list[str]) -> NDArray[np.float32]:
        encoder = self._encoder(searched)
        vector = encoder.query(request.parsed.typed if request.mode == "dense" else request.parsed.words, searched)
        if self._expansion is None:
            return vector
        context = ExpansionContext(
            request.parsed.typed, vector, lambda near, k: self._nearest(searched, near, k), encoder.passages
        )
        try:
            return self._expansion.expand(context)
        except BgePipelineError as error:
            warnings.append(f"the query was not expanded: {error.message}")
            return vector

    def _encoder(self, searched: SearchedColumn) -> ChosenEncoder:
        return choose_encoder(searched, self._query_encoder, self._service)

    def _service(self) -> EmbeddingsService:
        return self._given_service or EmbeddingsService.init_from_env(self._settings)

    def _reranker(self) -> ScoresPassages | None:
        return self._given_reranker or self._service().reranker

    def _session(self, searched: SearchedColumn, candidates: int) -> Session:
        return configured_scan(searched, self._settings, candidates)

    def _nearest(self, searched: SearchedColumn, vector: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        rows = self._fetch(searched, self._session(searched, k), nearest_vectors_statement(searched, vector, k))
        return np.array([row.vector for row in rows if row.vector is not None], np.float32)

    def _fetch(self, searched: SearchedColumn, session: Session, statement: Select[Any]) -> Sequence[Row[Any]]:
        with self._database.autocommit() as connection:
            rows = fetch(connection, session, statement)
        if rows[0][0] != searched.signature:
            raise _ColumnChanged
        return rows

    def _plan(self, session: Session, statement: Select[Any]) -> tuple[str, ...]:
        with self._database.autocommit() as connection:
            return tuple(fetch_plan(connection, session, statement))

    def _response(self, request: Request, found: Found, ranking: Reranking, seconds: StageSeconds) -> SearchResponse:
        warnings = found.warnings + ((ranking.warning,) if ranking.warning else ())
        for warning in warnings:
            logger.warning("search: %s", warning)
        reason = ranking.reason if self._can_rerank or request.rerank != "never" else "ENABLE_RERANKER is off"
        return SearchResponse(
            results=tuple(ranking.candidates[: request.top_k]),
            mode=request.mode,
            reranked=ranking.reranked,
            warnings=warnings,
            explanation=explain_search(
                found.searched,
                request.mode,
                found.session,
                warnings,
                len(found.candidates),
                ranking.reranked,
                reason,
                seconds,
                found.plan,
            ),
            seconds=seconds,
        )


def _check(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ConfigurationError(f"{name}: expected {', '.join(get_args(allowed))}, got {value!r}")
