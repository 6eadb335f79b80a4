"""The quality gate's verdict on a migration: the room `quality` is asked about its columns, and the swap goes by the answer."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from bge_pipeline.database.journal import JournalEntry, read_journal, record, server_seconds
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.gate import GateResult, QualityMeasurements, decide
from bge_pipeline.quality.measure import bounds_of, measure_index, measure_quality
from bge_pipeline.quality.recall_queries import RecallQueries
from bge_pipeline.settings import Settings
from bge_pipeline.telemetry.observed import observed

logger = logging.getLogger(__name__)

ACT = "quality"
"""The act of a verdict in the journal."""
FRESH_SECONDS = 900
"""A verdict that is older is no evidence about a live table."""


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
    if old is None or not old.is_numeric:
        return ComparedColumns(state.table, state.filled)
    return ComparedColumns(state.table, state.filled, old, space_of(old))


@observed("gate")
def judge_quality(
    migration: Migration, service: EmbeddingsService, queries: RecallQueries | None = None
) -> Verdict | None:
    """Measure and decide; None with QUALITY_GATE=off and on a table without a vector.

    Args:
        migration: of the table.
        service: the new model.
        queries: to ask the new column's index; None: stored vectors.
    """
    settings = migration.settings
    if settings.quality_gate == "off":
        return None
    with migration.database.autocommit() as connection:
        columns = compared_columns(read_state(connection, migration.target))
    measured = measure_quality(migration.database, settings, service, columns, queries)
    if measured is None:
        return None
    return Verdict(measured, decide(measured, bounds_of(settings, measured), settings.quality_gate))


def judge_for_swap(
    migration: Migration, service: EmbeddingsService, queries: RecallQueries | None = None
) -> Verdict | None:
    """The same, recorded in the journal, so that a swap that follows within minutes takes it and need not measure again."""
    started = time.perf_counter()
    verdict = judge_quality(migration, service, queries)
    if verdict is None:
        return None
    target = migration.target
    with migration.database.autocommit() as connection:
        columns = compared_columns(read_state(connection, target))
        facts = {
            "verdict": verdict.gate.summary().splitlines()[0],
            "passed": verdict.gate.passed,
            "seconds": time.perf_counter() - started,
            "measured_at": server_seconds(connection),
            "subject": _subject(migration.settings, service, columns),
            "measured": verdict.measured.as_dict(),
        }
    record(migration.database, target, ACT, facts)
    return verdict


def require_quality(
    migration: Migration, service: EmbeddingsService, queries: RecallQueries | None = None
) -> GateResult | None:
    """Take a fresh verdict or measure, and refuse the swap where the gate is enforced and does not pass.

    Of a fresh verdict the recall of the index is measured all the same, since the index may be newer.

    Arguments are those of `judge_quality`, and it returns None where that does.

    Raises:
        SwapRefused: names each bound that was missed.
    """
    verdict = _fresh_verdict(migration, service, queries) or judge_for_swap(migration, service, queries)
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


def _fresh_verdict(migration: Migration, service: EmbeddingsService, queries: RecallQueries | None) -> Verdict | None:
    """The last verdict in the journal, where it passed, is minutes old, and is about these columns as they are."""
    settings = migration.settings
    if settings.quality_gate == "off":
        return None
    target = migration.target
    with migration.database.autocommit() as connection:
        columns = compared_columns(read_state(connection, target))
        journal = read_journal(connection, target, newest_seconds=FRESH_SECONDS)
        now = server_seconds(connection)
    last = max((number for number, entry in enumerate(journal) if entry.act == ACT), default=None)
    if last is None:
        return None
    facts, since = journal[last].facts, journal[last + 1 :]
    age = now - facts["measured_at"]
    is_same = facts["subject"] == _subject(settings, service, columns)
    if not (facts["passed"] and is_same and 0 <= age <= FRESH_SECONDS and _is_as_it_was(since, columns)):
        return None
    logger.info("quality gate: the verdict of %.0f s ago is taken; the index is measured", age)
    found = QualityMeasurements.from_dict(facts["measured"])
    measured = measure_index(migration.database, settings, columns, found, queries)
    return Verdict(measured, decide(measured, bounds_of(settings, measured), settings.quality_gate))


def _is_as_it_was(since: Sequence[JournalEntry], columns: ComparedColumns) -> bool:
    """Whether hardly any vector was written since, and nothing else was done."""
    written = sum(int(entry.facts["rows"]) for entry in since if entry.act == "backfill")
    return all(entry.act == "backfill" for entry in since) and written <= columns.table.estimated_rows // 100


def _subject(settings: Settings, service: EmbeddingsService, columns: ComparedColumns) -> dict[str, Any]:
    """What a verdict is about: which columns, which model, asked in which way, by which version."""
    queries = settings.eval_queries
    return {
        "table": columns.table.oid,
        "columns": [columns.new.number, columns.old.number if columns.old is not None else None],
        "model": service.space.fingerprint,
        "sample_rows": settings.quality_sample_rows,
        "queries": hashlib.sha256(queries.read_bytes()).hexdigest() if queries is not None else None,
        "max_queries": settings.quality_max_queries,
        "reranker": [settings.reranker_model, settings.rerank_top_k] if settings.enable_reranker else None,
        "legacy_model": settings.legacy_model,
        "version": version("bge-pipeline"),
    }
