"""The labelled half of the gate: nDCG@20 of what the application will see, in the old and in the new column."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bge_pipeline.database.ids import Id, id_as_text
from bge_pipeline.database.sampling import among
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.reranker import Reranker, best_first, try_to_score
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError, ConfigurationError, OutOfMemory
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.judgements import JudgedQueries, load_judged_queries
from bge_pipeline.quality.metrics import ranking_quality
from bge_pipeline.quality.old_model import old_encoder, released
from bge_pipeline.quality.recall_queries import exact_ranking
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_RANKS = 20
_RERANKED_QUERIES = 50
"""A cross-encoder reads RERANK_TOP_K passages for each query and column: 20,000 pairs at the defaults."""

OnRows = Callable[[str, int, int], None]
"""Told the column, the rows compared so far, and the planner's estimate of all rows."""


@dataclass(frozen=True)
class LabelledQuality:
    """nDCG@20 over labelled queries.

    Attributes:
        ndcg_old: in the old column; None where its model is not at hand.
        ndcg_new: in the new column.
        queries: how many were asked.
        available: how many the file has; the others were left out by QUALITY_MAX_QUERIES, or no passage of theirs is there.
        reranked: whether the first RERANK_TOP_K were reranked, as the application's searches are.
        absent: queries none of whose relevant passages the table has.
    """

    ndcg_old: float | None
    ndcg_new: float
    queries: int
    available: int
    reranked: bool
    absent: int = 0

    def basis(self) -> str:
        """What the figures rest on, in words."""
        of = f" of {self.available:,}" if self.queries < self.available else ""
        return (
            f"{self.queries:,}{of} labelled queries"
            + (", reranked as the application's are" if self.reranked else "")
            + (f"; of {self.absent:,} the table has no relevant passage" if self.absent else "")
        )


def measure_labelled(
    connection: Connection,
    settings: Settings,
    service: EmbeddingsService,
    columns: ComparedColumns,
    *,
    on_rows: OnRows | None = None,
) -> LabelledQuality | None:
    """Search exactly in both columns for the queries of EVAL_QUERIES; None where there are none.

    The old model is the one noted with the old column, or LEGACY_MODEL where it is set and is found to have made the
    vectors that are there.
    """
    if settings.eval_queries is None:
        return None
    judged = load_judged_queries(settings.eval_queries)
    there = judged.among(_ids_there(connection, columns.table.target, judged))
    if not len(there):
        raise ConfigurationError(
            f"EVAL_QUERIES: the table has no relevant passage of any of its {len(judged)} queries",
            state="nothing was compared",
            next_step="give ids as the table has them: see the file of EVAL_QUERIES in the migration guide",
        )
    with released(old_encoder(connection, settings, columns)) as encoder:
        if encoder is None:
            logger.info("the old model is not at hand: nDCG@20 of the new vectors is measured alone")
        comparison = _Comparison(connection, settings, service, columns, judged, there, encoder, on_rows)
        return _by_one_reranker(comparison, service.reranker if settings.enable_reranker else None)


def _by_one_reranker(comparison: _Comparison, reranker: Reranker | None) -> LabelledQuality:
    if reranker is not None:
        model = reranker.model
        try:
            found = comparison.measure(reranker)
            if reranker.model == model:
                return found
            problem = f"{reranker.model} took the place of {model}"
        except _NotReranked as error:
            problem = str(error)
        logger.warning("%s while the columns were compared: both are measured again without a reranker", problem)
    return comparison.measure(None)


@dataclass(frozen=True)
class _Comparison:
    """The same queries in both columns, both times by the same reranker, or by none."""

    connection: Connection
    settings: Settings
    service: EmbeddingsService
    columns: ComparedColumns
    judged: JudgedQueries
    there: JudgedQueries
    old_encoder: QueryEncoder | None
    on_rows: OnRows | None

    def measure(self, reranker: Reranker | None) -> LabelledQuality:
        """Raises _NotReranked where the reranker fails."""
        most = self.settings.quality_max_queries
        asked = self.there.sampled(most if reranker is None else min(most, _RERANKED_QUERIES))
        texts = list(asked.queries.values())
        ndcg_new = self._ndcg(self.columns.new.name, self.service.encode_queries(texts), asked, reranker)
        ndcg_old = None
        if self.columns.old is not None and self.old_encoder is not None:
            queries = self._of_old_model(self.old_encoder, texts)
            ndcg_old = None if queries is None else self._ndcg(self.columns.old.name, queries, asked, reranker)
        absent = len(self.judged) - len(self.there)
        return LabelledQuality(ndcg_old, ndcg_new, len(asked), len(self.judged), reranker is not None, absent)

    def _of_old_model(self, encoder: QueryEncoder, texts: list[str]) -> NDArray[np.float32] | None:
        try:
            return encoder.encode(encoder.tokenize_queries(texts))
        except OutOfMemory:
            raise
        except BgePipelineError as error:
            logger.warning("the old model fails, so nDCG@20 of the new vectors is measured alone: %s", error.message)
            return None

    def _ndcg(
        self, column: str, queries: NDArray[np.float32], asked: JudgedQueries, reranker: Reranker | None
    ) -> float:
        def told(rows: int) -> None:
            if self.on_rows is not None:
                self.on_rows(column, rows, self.columns.table.estimated_rows)

        k = _RANKS if reranker is None else self.settings.rerank_top_k
        rankings = exact_ranking(self.connection, self.settings, column, queries, k=k, on_rows=told)
        if reranker is not None:
            rankings = [
                _reranked(self.connection, self.columns.table.target, reranker, query, ids)
                for query, ids in zip(asked.queries.values(), rankings, strict=True)
            ]
        by_query = {
            query_id: [id_as_text(i) for i in ids] for query_id, ids in zip(asked.queries, rankings, strict=True)
        }
        return ranking_quality(asked.qrels, by_query).ndcg


class _NotReranked(Exception):
    """The reranker failed on the passages of a query."""


def _ids_there(connection: Connection, target: TargetTable, judged: JudgedQueries) -> set[str]:
    """Of the passages that are judged those that the table has; in one read of it, as ids are given as text."""
    statement = target.sql("SELECT {id_text} AS id FROM {table} WHERE {id_text} = ANY (:ids)")
    return set(connection.execute(statement, {"ids": judged.passages}).scalars())


def _reranked(connection: Connection, target: TargetTable, reranker: Reranker, query: str, ids: list[Id]) -> list[Id]:
    if not ids:
        return []
    is_among, values = among(ids)
    rows = connection.execute(
        target.sql(f"SELECT {{id_text}} AS id, {{text}} AS text FROM {{table}} WHERE {is_among}"), values
    )
    texts = {row.id: row.text or "" for row in rows}
    there = [i for i in ids if id_as_text(i) in texts]
    scores = try_to_score(lambda: reranker, query, [texts[id_as_text(i)] for i in there])
    if scores.values is None:
        raise _NotReranked(scores.problem)
    return [there[position] for position in best_first(scores.values)[:_RANKS]]
