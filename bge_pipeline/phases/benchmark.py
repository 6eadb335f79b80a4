"""Benchmark: measure encoding, reranking, search and storage of the target table as they are now. Changes nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column, pgvector_version
from bge_pipeline.database.connection import server_version
from bge_pipeline.database.journal import journal_is_readable, read_journal
from bge_pipeline.database.operator import naming_what_vanished
from bge_pipeline.database.partition_indexes import serving_indexes
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import EncodingError
from bge_pipeline.phases.compare_search import QUESTIONS, can_compare, compare_columns
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.migration_times import MigrationTimes, migration_times
from bge_pipeline.phases.state import MigrationState, read_state, require_space, seeing_same_parts, space_of
from bge_pipeline.phases.verdict import Verdict, compared_columns, judge_quality
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.old_model import old_encoder, released
from bge_pipeline.quality.own_queries import own_queries
from bge_pipeline.quality.search_runs import SearchedColumns, search_runs
from bge_pipeline.quality.side_by_side import Comparison
from bge_pipeline.quality.speed import PASSAGES, QUERIES, EncodeRun, RerankRun, measure_encoding, measure_reranking
from bge_pipeline.report.benchmark import BenchmarkReport, Storage
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import SearchSettings

BATCH_SIZES = (32, 128, 256)
MOST_SENT_TEXTS = 500
"""To an endpoint, which is measured once and costs money."""
_COMPARING_SECONDS = 30.0
"""For the questions side by side: where no index serves, each reads both columns."""


def benchmark(
    migration: Migration,
    service: EmbeddingsService,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    on_step: Callable[[str], None] = lambda _: None,
) -> BenchmarkReport:
    """Measure the table and the model on this machine.

    Args:
        migration: BENCHMARK_TEXTS of the table's texts are encoded at each batch size; of an endpoint, some hundreds at one.
        service: the model.
        batch_sizes: ceilings on the texts in one forward pass.
        on_step: told what is being measured.

    Raises:
        EmbeddingSpaceMismatch: the table's new column holds another model's vectors.
        ConfigurationError: a file or a column of questions cannot be read.
        ChangedMeanwhile: another process exchanged or dropped a column.
    """
    notes: list[str] = []
    with naming_what_vanished(migration.target, "benchmark"):
        found = _read(migration, service, notes)
        with seeing_same_parts(migration.database, found.state):
            on_step("the old model")
            with migration.database.autocommit() as connection:
                encoder = old_encoder(connection, migration.settings, found.columns)
            with released(encoder):
                encode = _encode(service, found.sample, batch_sizes, notes, on_step)
                rerank = _rerank(service, found.sample, migration.settings, notes, on_step)
                on_step("quality")
                verdict = _verdict(migration, service, found.state, notes)
                on_step("search")
                recall = verdict.measured.ann_recall if verdict is not None else None
                searched = _searched(found, encoder, recall)
                search = search_runs(migration.database, migration.settings, service, searched, notes)
                compared = _compared(migration, service, found, encoder, on_step)
    return BenchmarkReport(
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        table=str(migration.target),
        phase=found.state.phase,
        rows=found.rows,
        model=service.space.model,
        dimensions=service.dimensions,
        device=service.device,
        precision=service.space.precision,
        hardware=hardware(),
        versions=found.versions,
        encode=encode,
        rerank=rerank,
        search=search,
        storage=found.storage,
        phases=found.times.phases,
        gate=verdict.gate if verdict else None,
        index_seconds=found.times.index_seconds,
        lock_milliseconds=found.times.lock_milliseconds,
        backfill_seconds=found.times.backfill_seconds,
        backfill_texts_per_second=found.times.backfill_texts_per_second,
        write_rows_per_second=found.times.write_rows_per_second,
        notes=tuple(notes),
        side_by_side=compared,
    )


@dataclass(frozen=True)
class _Found:
    """What is read of the table before anything is measured."""

    state: MigrationState
    columns: ComparedColumns
    questions: Sequence[str]
    rows: int
    sample: Sequence[str]
    times: MigrationTimes
    storage: Storage
    versions: dict[str, str]


def _read(migration: Migration, service: EmbeddingsService, notes: list[str]) -> _Found:
    target, settings = migration.target, migration.settings
    with migration.database.autocommit() as connection:
        state = read_state(connection, target)
        columns = _columns(state)
        if state.phase != "legacy":
            require_space(columns.new, service.space, target)
            if not journal_is_readable(connection, target):
                notes.append("when the phases ran was not read: this role may not read the journal, or there is none")
        times = migration_times(read_journal(connection, target))
        return _Found(
            state,
            columns,
            own_queries(connection, settings, QUESTIONS) if can_compare(state) else [],
            int(connection.execute(target.sql("SELECT count(*) FROM {table} WHERE {in_part}")).scalar_one()),
            sample_texts(connection, target, settings.benchmark_texts),
            times,
            _storage(connection, state, columns, times.table_bytes_before),
            _versions(connection),
        )


def _columns(state: MigrationState) -> ComparedColumns:
    """The columns that are measured; before a migration the one that is there, which is the old one."""
    if state.phase != "legacy":
        return compared_columns(state)
    old = state.table.embedding
    return ComparedColumns(state.table, old, old, space_of(old))


def _searched(found: _Found, encoder: QueryEncoder | None, new_recall: float | None) -> SearchedColumns:
    columns = found.columns
    new = columns.new.name if found.state.phase != "legacy" else None
    return SearchedColumns(columns.table.target, _searchable(columns.old), new, columns.old_space, encoder, new_recall)


def _compared(
    migration: Migration,
    service: EmbeddingsService,
    found: _Found,
    encoder: QueryEncoder | None,
    on_step: Callable[[str], None],
) -> Comparison | None:
    if not can_compare(found.state):
        return None
    on_step("questions side by side")
    return compare_columns(migration, service, found.columns, encoder, found.questions, seconds=_COMPARING_SECONDS)


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


def _encode(
    service: EmbeddingsService,
    sample: Sequence[str],
    batch_sizes: Sequence[int],
    notes: list[str],
    on_step: Callable[[str], None],
) -> tuple[EncodeRun, ...]:
    if not sample:
        notes.append("the table has no text: nothing was encoded")
        return ()
    if isinstance(service.encoder, EndpointEncoder):
        sample, batch_sizes = sample[:MOST_SENT_TEXTS], batch_sizes[-1:]
    runs = []
    for size in batch_sizes:
        on_step(f"encoding {len(sample):,} texts, batch size {size}")
        try:
            runs.append(measure_encoding(service, sample, size))
        except EncodingError as error:
            notes.append(f"encoding in batches of {size} was not measured: {error.message}")
    return tuple(runs)


def _verdict(
    migration: Migration, service: EmbeddingsService, state: MigrationState, notes: list[str]
) -> Verdict | None:
    if state.phase == "legacy":
        return None
    verdict = judge_quality(migration, service)
    if verdict is None:
        is_off = migration.settings.quality_gate == "off"
        notes.append(f"quality was not measured: {'QUALITY_GATE=off' if is_off else 'the new column has no vector'}")
    return verdict


def _rerank(
    service: EmbeddingsService,
    texts: Sequence[str],
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


def _searchable(column: Column | None) -> str | None:
    return column.name if column is not None and column.type_name in SEARCHABLE_TYPES else None


def _storage(
    connection: Connection, state: MigrationState, columns: ComparedColumns, table_bytes_before: int | None
) -> Storage:
    indexes = [index for index in serving_indexes(connection, state.table, columns.new.number) if index.valid]
    return Storage(
        old_vector_bytes=_vector_bytes(columns.old),
        new_vector_bytes=_vector_bytes(columns.new) if state.phase != "legacy" else None,
        table_bytes_before=table_bytes_before,
        table_bytes_now=table_bytes(connection, state.table.target),
        index_bytes=indexes[0].bytes if indexes else None,
    )


def _vector_bytes(column: Column | None) -> int | None:
    """Bytes of one vector, where the column's type says how many."""
    if column is None or column.dimensions is None or column.type_name not in SEARCHABLE_TYPES:
        return None
    return VectorType("vector" if column.type_name == "vector" else "halfvec", column.dimensions).bytes
