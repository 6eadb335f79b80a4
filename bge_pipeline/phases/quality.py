"""Quality: measure the new column against the old one and against the model, and let the gate decide on the swap."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.notes import note_statement
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vectors import SampledRows, sample_vectors
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import SwapRefused
from bge_pipeline.evaluation.gate import GateBounds, GateResult, QualityMeasurements, decide
from bge_pipeline.evaluation.label_free import (
    MIN_ROWS_PER_NEIGHBOUR,
    NeighbourAgreement,
    excerpts,
    known_item_search,
    neighbour_agreement,
    stored_vectors_match,
)
from bge_pipeline.phases.labelled_quality import OnRows, measure_labelled
from bge_pipeline.phases.state import MigrationState, read_state, require_same_parts
from bge_pipeline.search.ann import index_recall, recommend_for_recall
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_NEIGHBOURS = 20
_REEMBEDDED_ROWS = 200
_RECALL_QUERIES = 50
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class QualityReport:
    """What was measured, and what the gate made of it."""

    measured: QualityMeasurements
    gate: GateResult


def note_search_effort(operator: Operator, settings: Settings, state: MigrationState) -> None:
    """Find the probes or ef_search that reach more than QUALITY_MIN_ANN_RECALL and note them with the column."""
    if settings.search_probes is not None or settings.search_ef_search is not None:
        return
    # Half-way to perfect: the gate measures on other queries, and must not fail by the luck of the sample.
    wanted = (1 + settings.quality_min_ann_recall) / 2
    column = state.filled.name
    found = recommend_for_recall(
        operator.database, settings, wanted, column=column, k=_NEIGHBOURS, samples=_RECALL_QUERIES
    )
    if found is None:
        return
    effort = max(found.value, found.default)
    logger.info("%s=%d gives recall@%d of %.3f", found.setting, effort, _NEIGHBOURS, found.points[-1].recall)

    def note(connection: Connection) -> None:
        require_same_parts(connection, state)
        noted = describe_table(connection, operator.target).columns[column].note
        assert noted is not None, "require_same_parts has seen the note's space"
        connection.execute(note_statement(operator.target, column, replace(noted, search_effort=effort)))

    operator.change(settings, f"swap: note {found.setting} with the column", note)


def require_quality(database: Database, settings: Settings, service: EmbeddingsService) -> GateResult | None:
    """Measure, decide, and refuse the swap where the gate is enforced and does not pass.

    Returns None where `measure_quality` does.

    Raises:
        SwapRefused: names each bound that was missed.
    """
    report = measure_quality(database, settings, service)
    if report is None:
        return None
    logger.info("%s", report.gate.summary())
    if report.gate.blocks:
        raise SwapRefused(
            report.gate.summary(),
            state="nothing was exchanged; search reads the old column",
            next_step="correct the model and start again (bge-pipeline rollback), or override knowingly: "
            "bge-pipeline migrate --force, or QUALITY_GATE=warn",
        )
    return report.gate


def measure_quality(database: Database, settings: Settings, service: EmbeddingsService) -> QualityReport | None:
    """Compare old and new vectors of sampled rows, stored and recomputed ones, and the index with exact search.

    Returns None with QUALITY_GATE=off and on a table without a vector.
    """
    if settings.quality_gate == "off":
        return None
    target = TargetTable.from_settings(settings)
    with database.autocommit() as connection:
        state = read_state(connection, target)
        new, old = quality_columns(state)
        columns = [new] if old is None else [new, old]
        sample = sample_vectors(connection, target, columns, settings.quality_sample_rows)
        if not len(sample):
            return None
        recall = index_recall(connection, settings, new, sample.vectors[new][:_RECALL_QUERIES], k=_NEIGHBOURS)
        labelled = measure_labelled(connection, settings, service, state, new, old, on_rows=_log_rows())
    few = min(len(sample), _REEMBEDDED_ROWS)
    recomputed = service.encode_texts(sample.texts[:few])
    queries = service.encode_queries(excerpts(sample.texts[:few]))
    measured = QualityMeasurements(
        ndcg_old=labelled.ndcg_old if labelled is not None else None,
        ndcg_new=labelled.ndcg_new if labelled is not None else None,
        ndcg_basis=labelled.basis() if labelled is not None else None,
        ann_recall=recall,
        neighbours=_neighbours(sample, new, old),
        known_items=known_item_search(queries, sample.vectors[new], range(few), k=_NEIGHBOURS),
        stored_vectors=stored_vectors_match(sample.vectors[new][:few], recomputed),
        read_whole=1.0 - float(service.encoder.tokenize(sample.texts).truncated.mean()),
    )
    return QualityReport(measured, decide(measured, _bounds(settings), settings.quality_gate))


def quality_columns(state: MigrationState) -> tuple[str, str | None]:
    """The column of the new vectors and the one of the old, where there is one whose vectors are numbers."""
    old = state.table.embedding if state.new is not None else state.previous
    return state.filled.name, old.name if old is not None and old.type_name != "bit" else None


def _neighbours(sample: SampledRows, new: str, old: str | None) -> NeighbourAgreement | None:
    if old is None or len(sample) < MIN_ROWS_PER_NEIGHBOUR * _NEIGHBOURS:
        return None
    return neighbour_agreement(sample.vectors[old], sample.vectors[new], _NEIGHBOURS)


def _log_rows() -> OnRows:
    """Say every few seconds how far the exact search is, which on a large table takes minutes."""
    last = time.monotonic()

    def told(column: str, rows: int, estimated: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            share = f", {min(1.0, rows / estimated):.0%}" if estimated else ""
            logger.info("quality: exact search in %r, %s rows compared%s", column, f"{rows:,}", share)

    return told


def _bounds(settings: Settings) -> GateBounds:
    bounds = GateBounds.for_search(reranked=settings.enable_reranker)
    return replace(
        bounds,
        ann_recall=settings.quality_min_ann_recall,
        read_whole=settings.quality_min_read_whole,
        ndcg_retained=settings.quality_min_ndcg_retained or bounds.ndcg_retained,
    )
