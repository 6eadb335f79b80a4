"""The benchmark report: what was measured, as one frozen object, and as plain values for the UI's history."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BASELINE_TEXTS_PER_SECOND = 40.0
"""GTE-Qwen2-1.5B on the GPU of the migration this tool was made for: 30 to 50 texts/s, reported, not measured here."""

UNMEASURED = "not measured on this hardware"


@dataclass(frozen=True)
class EncodeRun:
    """Encoding the sample with one batch size; `device_memory_bytes` is None where the device does not tell."""

    batch_size: int
    texts: int
    tokens: int
    seconds: float
    device_memory_bytes: int | None

    @property
    def texts_per_second(self) -> float:
        """Texts per second of wall time."""
        return self.texts / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens, padding not counted, per second of wall time."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class SearchRun:
    """One way of searching, timed query by query.

    Attributes:
        name: which column, by which means.
        queries: how many were timed.
        p50_milliseconds, p95_milliseconds: from the query to its results, encoding included where `encodes` is true.
        encodes: whether the query's vector was made within the time.
        recall: share of the exact 20 nearest that came back; None where nothing exact is compared.
        ndcg: nDCG@20 on labelled queries; None without them.
    """

    name: str
    queries: int
    p50_milliseconds: float
    p95_milliseconds: float
    encodes: bool
    recall: float | None = None
    ndcg: float | None = None


@dataclass(frozen=True)
class RerankRun:
    """Reranking `documents` candidates for each of `queries` queries."""

    model: str
    queries: int
    documents: int
    seconds: float

    @property
    def pairs_per_second(self) -> float:
        """Pairs of query and document per second of wall time."""
        return self.queries * self.documents / self.seconds

    @property
    def milliseconds_per_query(self) -> float:
        """Time that reranking adds to one search."""
        return 1_000 * self.seconds / self.queries


@dataclass(frozen=True)
class PhaseTime:
    """One act of the migration, from the journal."""

    act: str
    at: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Claim:
    """A figure that the mission names, beside what was measured here."""

    what: str
    claimed: str
    measured: str


@dataclass(frozen=True)
class Storage:
    """Bytes before and after; None is what was not recorded.

    Attributes:
        old_vector_bytes, new_vector_bytes: of one row.
        table_bytes_before: table with indexes when expand began.
        table_bytes_now: the same now, both columns included until the old one is retired.
        index_bytes: of the new vector index.
    """

    old_vector_bytes: int | None
    new_vector_bytes: int
    table_bytes_before: int | None
    table_bytes_now: int
    index_bytes: int | None


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that one benchmark measured.

    Attributes:
        created_at: ISO 8601, UTC.
        hardware: processor, cores, memory and accelerator of the machine that encoded.
        versions: of PostgreSQL, pgvector, Python and this package.
        gate: the quality gate's result as plain values, None where it was not measured.
        lock_milliseconds: exclusive lock of the latest swap, None before it.
        index_seconds: build of the new vector index, None before it.
        notes: what could not be measured, and why.
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
    gate: dict[str, Any] | None
    gate_summary: str
    index_seconds: float | None
    lock_milliseconds: float | None
    backfill_texts_per_second: float | None
    write_rows_per_second: float | None
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]

    @property
    def best_texts_per_second(self) -> float | None:
        """Texts per second at the best batch size; None where nothing was encoded."""
        return max((run.texts_per_second for run in self.encode), default=None)

    def as_json(self) -> dict[str, Any]:
        """The whole report as plain values."""
        return asdict(self) | {
            "encode": [asdict(run) | {"texts_per_second": run.texts_per_second} for run in self.encode]
        }

    def as_metadata(self) -> dict[str, float | int | str]:
        """The figures whose history over runs is worth a curve."""
        best = self.best_texts_per_second
        figures: dict[str, float | int | str | None] = {
            "texts_per_second": best,
            "speedup_over_baseline": best / BASELINE_TEXTS_PER_SECOND if best is not None else None,
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
            name = run.name.replace(",", "").replace(" ", "_")
            figures |= {
                f"{name}_p50_milliseconds": run.p50_milliseconds,
                f"{name}_p95_milliseconds": run.p95_milliseconds,
                f"{name}_recall": run.recall,
                f"{name}_ndcg": run.ndcg,
            }
        return {name: value for name, value in figures.items() if value is not None}
