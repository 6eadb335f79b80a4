"""The benchmark report: what was measured, as one frozen object, and as plain values for the UI's history."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.quality.gate import GateResult
from bge_pipeline.quality.search_runs import SearchRun
from bge_pipeline.quality.side_by_side import Comparison
from bge_pipeline.quality.speed import EncodeRun, RerankRun


@dataclass(frozen=True)
class PhaseTime:
    """One act of the migration, from the journal.

    Attributes:
        at: when it ended, as PostgreSQL writes a timestamptz.
        seconds: how long it took; None where the journal does not say.
    """

    act: str
    at: str
    seconds: float | None
    detail: str


@dataclass(frozen=True)
class Storage:
    """Bytes before and after; None is what was not recorded.

    Attributes:
        old_vector_bytes, new_vector_bytes: of one row; None too where the column's type does not say, or there is none.
        table_bytes_before: table with indexes when expand began.
        table_bytes_now: the same now, both columns included until the old one is retired.
        index_bytes: of the new vector index.
    """

    old_vector_bytes: int | None
    new_vector_bytes: int | None
    table_bytes_before: int | None
    table_bytes_now: int
    index_bytes: int | None


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that one benchmark measured.

    Attributes:
        created_at: ISO 8601, UTC.
        hardware: processor, cores and memory of the machine that encoded.
        versions: of PostgreSQL, pgvector, Python and this package.
        gate: the quality gate's decision, None where it was not measured.
        backfill_seconds: in which at least one run was at work, until the new column was indexed; None before the first.
        backfill_texts_per_second: rows of these runs by these seconds.
        write_rows_per_second: rows by the time that their writing was busy.
        lock_milliseconds: exclusive lock of the latest swap, None before it.
        index_seconds: build of the new vector index; None before it.
        notes: what could not be measured, and why.
        side_by_side: what the user's questions find with old and with new vectors; None where there are not both.
    """

    created_at: str
    table: str
    phase: str
    rows: int
    model: str
    dimensions: int
    device: str
    precision: str
    hardware: str
    versions: dict[str, str]
    encode: tuple[EncodeRun, ...]
    rerank: RerankRun | None
    search: tuple[SearchRun, ...]
    storage: Storage
    phases: tuple[PhaseTime, ...]
    gate: GateResult | None
    index_seconds: float | None
    lock_milliseconds: float | None
    backfill_seconds: float | None
    backfill_texts_per_second: float | None
    write_rows_per_second: float | None
    notes: tuple[str, ...]
    side_by_side: Comparison | None = None

    @property
    def best_texts_per_second(self) -> float | None:
        """Texts per second at the best batch size; None where nothing was encoded."""
        return max((run.texts_per_second for run in self.encode), default=None)

    @property
    def gate_summary(self) -> str:
        """The gate's decision in words."""
        if self.gate is None:
            return "nothing to compare yet" if self.phase == "legacy" else "not measured"
        return self.gate.summary()

    def as_json(self) -> dict[str, Any]:
        """The whole report as plain values."""
        return asdict(self) | {
            "encode": [asdict(run) | {"texts_per_second": run.texts_per_second} for run in self.encode],
            "search": [asdict(run) | {"name": run.name} for run in self.search],
            "side_by_side": self.side_by_side.as_metadata() if self.side_by_side is not None else None,
            "gate": self.gate.as_metadata() if self.gate is not None else None,
            "gate_summary": self.gate_summary,
        }

    def as_metadata(self) -> dict[str, float | int | str]:
        """The figures whose history over runs is worth a curve."""
        figures: dict[str, float | int | str | None] = {
            "texts_per_second": self.best_texts_per_second,
            "backfill_seconds": self.backfill_seconds,
            "backfill_texts_per_second": self.backfill_texts_per_second,
            "write_rows_per_second": self.write_rows_per_second,
            "index_seconds": self.index_seconds,
            "lock_milliseconds": self.lock_milliseconds,
            "table_bytes_before": self.storage.table_bytes_before,
            "table_bytes_now": self.storage.table_bytes_now,
            "rows": self.rows,
            "rerank_milliseconds": self.rerank.milliseconds_per_query if self.rerank else None,
        }
        for run in self.search:
            name = "_".join(run.words)
            figures |= {
                f"{name}_p50_milliseconds": run.p50_milliseconds,
                f"{name}_p95_milliseconds": run.p95_milliseconds,
                f"{name}_recall": run.recall,
                f"{name}_ndcg": run.ndcg,
            }
        return {name: value for name, value in figures.items() if value is not None}
