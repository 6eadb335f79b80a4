"""The quality gate's verdict on a migration: the room `quality` is asked about its columns, and the swap goes by the answer."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.gate import GateResult, QualityMeasurements, decide
from bge_pipeline.quality.measure import bounds_of, measure_quality
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What was measured, and what the gate made of it."""

    measured: QualityMeasurements
    gate: GateResult


def compared_columns(state: MigrationState) -> ComparedColumns:
    """The column that the migration fills, and the one of the old vectors, where those are numbers.

    Raises:
        PhaseError: there is no column to fill yet.
    """
    old = state.table.embedding if state.new is not None else state.previous
    if old is None or old.type_name == "bit":
        return ComparedColumns(state.table, state.filled)
    return ComparedColumns(state.table, state.filled, old, space_of(old))


def judge_quality(database: Database, settings: Settings, service: EmbeddingsService) -> Verdict | None:
    """Measure and decide; None with QUALITY_GATE=off and on a table without a vector."""
    if settings.quality_gate == "off":
        return None
    with database.autocommit() as connection:
        columns = compared_columns(read_state(connection, TargetTable.from_settings(settings)))
    measured = measure_quality(database, settings, service, columns)
    if measured is None:
        return None
    return Verdict(measured, decide(measured, bounds_of(settings), settings.quality_gate))


def require_quality(database: Database, settings: Settings, service: EmbeddingsService) -> GateResult | None:
    """Measure, decide, and refuse the swap where the gate is enforced and does not pass.

    Returns None where `judge_quality` does.

    Raises:
        SwapRefused: names each bound that was missed.
    """
    verdict = judge_quality(database, settings, service)
    if verdict is None:
        return None
    logger.info("%s", verdict.gate.summary())
    if verdict.gate.blocks:
        raise SwapRefused(
            verdict.gate.summary(),
            state="nothing was exchanged; search reads the old column",
            next_step="correct the model and start again (bge-pipeline rollback), or override knowingly: "
            "bge-pipeline migrate --force, or QUALITY_GATE=warn",
        )
    return verdict.gate
