"""Benchmark: measure encoding, reranking, search and storage of the target table as they are now. Changes nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column, pgvector_version
from bge_pipeline.database.connection import server_version
from bge_pipeline.database.indexes import vector_indexes_on
from bge_pipeline.database.journal import JournalEntry, read_journal
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import EncodingError
from bge_pipeline.phases.compare_search import can_compare, compare_search
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, read_state, space_of
from bge_pipeline.phases.verdict import Verdict, compared_columns, judge_quality
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.search_runs import SearchedColumns, search_runs
from bge_pipeline.quality.speed import PASSAGES, QUERIES, RerankRun, measure_encoding, measure_reranking
from bge_pipeline.report.benchmark import BenchmarkReport, PhaseTime, Storage
from bge_pipeline.report.wall_clock import wall_seconds
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import SearchSettings

BATCH_SIZES = (32, 128, 256)


def benchmark(
    migration: Migration,
    service: EmbeddingsService,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    on_step: Callable[[str], None] = lambda _: None,
) -> BenchmarkReport:
    """Measure the table and the model on this machine.

    Args:
        migration: BENCHMARK_TEXTS of the table's texts are encoded at each batch size.
        service: the model.
        batch_sizes: ceilings on the texts in one forward pass.
        on_step: told what is being measured.
    """
    target = migration.target
    with migration.database.autocommit() as connection:
        state = read_state(connection, target)
        rows = int(connection.execute(target.sql("SELECT count(*) FROM {table}")).scalar_one())
        sample = sample_texts(connection, target, migration.settings.benchmark_texts)
        journal = _latest_migration(read_journal(connection, target))
        storage = _storage(connection, state, journal)
        versions = _versions(connection)
    notes: list[str] = []
    encode = []
    for size in batch_sizes if sample else ():
        on_step(f"encoding {len(sample):,} texts, batch size {size}")
        encode.append(measure_encoding(service, sample, size))
    if not encode:
        notes.append("the table has no text: nothing was encoded")
    rerank = _rerank(service, sample, migration.settings, notes, on_step)
    on_step("quality")
    verdict = judge_quality(migration, service) if state.phase != "legacy" else None
    on_step("search")
    search = search_runs(migration.database, migration.settings, service, _searched(state, verdict), notes)
    swap = _latest(journal, "swap")
    backfills = [entry for entry in journal if entry.act == "backfill"]
    built = [entry for entry in journal if entry.act == "swap" and entry.facts.get("index_built")]
    wall = wall_seconds((entry.at, float(entry.facts["seconds"])) for entry in backfills) if backfills else None
    return BenchmarkReport(
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        table=str(target),
        phase=state.phase,
        rows=rows,
        model=service.space.model,
        dimensions=service.dimensions,
        device=service.device,
        precision=service.space.precision,
        hardware=hardware(),
        versions=versions,
        encode=tuple(encode),
        rerank=rerank,
        search=search,
        storage=storage,
        phases=tuple(_phase_time(entry) for entry in journal),
        gate=verdict.gate if verdict else None,
        index_seconds=float(built[-1].facts["index_seconds"]) if built else None,
        lock_milliseconds=float(swap["lock_milliseconds"]) if swap else None,
        backfill_seconds=wall,
        backfill_texts_per_second=sum(int(entry.facts["rows"]) for entry in backfills) / wall if wall else None,
        write_rows_per_second=_rate(backfills, "write_seconds"),
        notes=tuple(notes),
        side_by_side=compare_search(migration, service) if can_compare(state) else None,
    )


def hardware() -> str:
    """The machine in words: processor, cores, memory."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a kernel file, read line by line
            processor = next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor
            )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        return f"{processor}, {os.cpu_count()} cores"
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB"


def _versions(connection: Connection) -> dict[str, str]:
    return {
        "PostgreSQL": str(server_version(connection) // 10_000),
        "pgvector": pgvector_version(connection) or "none",
        "Python": platform.python_version(),
        "bge-pipeline": version("bge-pipeline"),
    }


def _rerank(
    service: EmbeddingsService,
    texts: list[str],
    settings: SearchSettings,
    notes: list[str],
    on_step: Callable[[str], None],
) -> RerankRun | None:
    if not settings.enable_reranker:
        notes.append("reranking was not measured: ENABLE_RERANKER is not set")
        return None
    reranker = service.reranker
    if reranker is None or not texts:
        notes.append("reranking was not measured: no reranker could be loaded")
        return None
    on_step(f"reranking {QUERIES} queries of {PASSAGES} passages")
    try:
        return measure_reranking(reranker, texts)
    except EncodingError as error:
        notes.append(f"reranking was not measured: {error.message}")
        return None


def _searched(state: MigrationState, verdict: Verdict | None) -> SearchedColumns:
    if state.phase == "legacy":
        old = state.table.embedding
        return SearchedColumns(state.table.target, _searchable(old), None, space_of(old), None)
    columns = compared_columns(state)
    return SearchedColumns(
        state.table.target,
        _searchable(columns.old),
        columns.new.name,
        columns.old_space,
        verdict.measured.ann_recall if verdict is not None else None,
    )


def _searchable(column: Column | None) -> str | None:
    return column.name if column is not None and column.type_name in SEARCHABLE_TYPES else None


def _storage(connection: Connection, state: MigrationState, journal: Sequence[JournalEntry]) -> Storage:
    target = state.table.target
    columns = (
        compared_columns(state) if state.phase != "legacy" else ComparedColumns(state.table, state.table.embedding)
    )
    expanded = next((entry.facts for entry in journal if entry.act == "expand"), None)
    indexes = vector_indexes_on(connection, state.table.oid, columns.new.number)
    return Storage(
        old_vector_bytes=_vector_bytes(columns.old),
        new_vector_bytes=_vector_bytes(columns.new) or 0,
        table_bytes_before=int(expanded["table_bytes_before"]) if expanded else None,
        table_bytes_now=table_bytes(connection, target),
        index_bytes=indexes[0].bytes if indexes else None,
    )


def _vector_bytes(column: Column | None) -> int | None:
    """Bytes of one vector, where the column's type says how many."""
    if column is None or column.dimensions is None or column.type_name not in SEARCHABLE_TYPES:
        return None
    return VectorType("vector" if column.type_name == "vector" else "halfvec", column.dimensions).bytes


def _phase_time(entry: JournalEntry) -> PhaseTime:
    facts = entry.facts
    built = facts.get("index_seconds") if facts.get("index_built") else None
    seconds = facts.get("seconds", built)
    detail = {
        "expand": lambda: f"column {facts['column']}",
        "backfill": lambda: f"{facts['rows']:,} rows, ids {facts['id_range']}",
        "quality": lambda: str(facts["verdict"]),
        "swap": lambda: (
            f"index {facts['index_name']} {'built' if facts['index_built'] else 'was there, built by an earlier run'}; "
            f"lock held for {facts['lock_milliseconds']:.0f} ms"
        ),
        "rollback": lambda: f"lock held for {facts['lock_milliseconds']:.0f} ms",
    }.get(entry.act, lambda: "")()
    return PhaseTime(entry.act, entry.at, float(seconds) if seconds is not None else None, detail)


def _latest_migration(journal: Sequence[JournalEntry]) -> list[JournalEntry]:
    """The entries from the first expand after the migration before it ended, if there was one."""
    expands = [number for number, entry in enumerate(journal) if entry.act == "expand"]
    ends = [number for number, entry in enumerate(journal) if entry.act in ("retire", "collapse")]
    earlier = [number for number in ends if expands and number < expands[-1]]
    return list(journal[max(earlier, default=-1) + 1 :])


def _latest(journal: Sequence[JournalEntry], act: str) -> dict[str, Any] | None:
    return next((entry.facts for entry in reversed(journal) if entry.act == act), None)


def _rate(backfills: Sequence[JournalEntry], clock: str) -> float | None:
    seconds = sum(float(entry.facts[clock]) for entry in backfills)
    return sum(int(entry.facts["rows"]) for entry in backfills) / seconds if seconds else None
