"""What a migration took, read from its materializations: the facts behind `benchmark_report`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.books import materializations_since_expansion
from bge_pipeline.orchestration.names import BACKFILLED, SCHEMA, SWAPPED
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class MigrationHistory:
    """Figures of the migration since its column was added.

    Attributes:
        partitions: partitions of the backfill that have been materialized.
        rows: vectors that their runs wrote; a failed run is not among them.
        backfill_seconds: wall time, summed over those runs.
        encode_seconds, write_seconds: time that the encoder and the writer were busy; they overlap.
        table_bytes_before: size of the table with its indexes before expand; None where expand was not run by Dagster.
        table_bytes_after: size now, with both columns until the old one is retired.
        old_vector_bytes, new_vector_bytes: of one row.
    """

    table: str
    phase: str
    model: str
    device: str
    partitions: int
    rows: int
    truncated: int
    quarantined: int
    tokens: int
    backfill_seconds: float
    encode_seconds: float
    write_seconds: float
    peak_memory_bytes: int
    index_name: str
    index_seconds: float
    index_bytes: int
    lock_milliseconds: float
    table_bytes_before: int | None
    table_bytes_after: int
    old_vector_bytes: int
    new_vector_bytes: int

    @property
    def texts_per_second(self) -> float:
        """Rows embedded and written per second of the backfill."""
        return _rate(self.rows, self.backfill_seconds)

    @property
    def encoded_per_second(self) -> float:
        """Rows per second that the encoder was busy."""
        return _rate(self.rows, self.encode_seconds)

    @property
    def written_per_second(self) -> float:
        """Rows per second that the writer was busy."""
        return _rate(self.rows, self.write_seconds)

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        rates = {
            "texts_per_second": self.texts_per_second,
            "encoded_per_second": self.encoded_per_second,
            "written_per_second": self.written_per_second,
        }
        return asdict(self) | rates

    def as_markdown(self) -> str:
        """The figures as a page."""
        before = "not measured" if self.table_bytes_before is None else _mebibytes(self.table_bytes_before)
        rows = [
            ("Rows embedded", f"{self.rows:,} in {self.partitions} partitions"),
            ("Backfill", f"{self.backfill_seconds:,.1f} s, {self.texts_per_second:,.0f} texts/s"),
            ("Encoder alone", f"{self.encode_seconds:,.1f} s, {self.encoded_per_second:,.0f} texts/s"),
            ("Writer alone", f"{self.write_seconds:,.1f} s, {self.written_per_second:,.0f} rows/s"),
            ("Tokens", f"{self.tokens:,}, {self.truncated:,} texts cut off"),
            ("Quarantined rows", f"{self.quarantined:,}"),
            ("Peak memory", _mebibytes(self.peak_memory_bytes)),
            ("Index", f"`{self.index_name}`, {self.index_seconds:,.1f} s, {_mebibytes(self.index_bytes)}"),
            ("Exclusive lock of the swap", f"{self.lock_milliseconds:,.1f} ms"),
            ("One vector", f"{self.old_vector_bytes:,} bytes before, {self.new_vector_bytes:,} bytes after"),
            ("Table with indexes", f"{before} before, {_mebibytes(self.table_bytes_after)} now ({self.phase})"),
        ]
        lines = "\n".join(f"| {name} | {figure} |" for name, figure in rows)
        return f"### {self.table}: {self.model} on {self.device}\n\n| | |\n|---|---|\n{lines}\n"


def read_history(instance: dg.DagsterInstance, database: Database, settings: Settings) -> MigrationHistory:
    """The history of the configured table, as far as Dagster ran it."""
    status = read_status(database, settings)
    found = materializations_since_expansion(instance, BACKFILLED)
    parts = [_plain(materialization) for materialization in found]
    schema = _latest(materializations_since_expansion(instance, SCHEMA))
    swapped = _latest(materializations_since_expansion(instance, SWAPPED))
    latest = parts[-1] if parts else {}
    return MigrationHistory(
        table=status.table,
        phase=status.phase,
        model=str(latest.get("model", status.new_model or status.model)),
        device=str(latest.get("device", "unknown")),
        partitions=len({materialization.partition for materialization in found}),
        rows=_total(parts, "rows"),
        truncated=_total(parts, "truncated"),
        quarantined=status.quarantined,
        tokens=_total(parts, "tokens"),
        backfill_seconds=sum(float(part.get("seconds", 0)) for part in parts),
        encode_seconds=sum(float(part.get("encode_seconds", 0)) for part in parts),
        write_seconds=sum(float(part.get("write_seconds", 0)) for part in parts),
        peak_memory_bytes=max((int(part.get("peak_memory_bytes", 0)) for part in parts), default=0),
        index_name=str(swapped.get("index_name", "none")),
        index_seconds=float(swapped.get("index_seconds", 0)),
        index_bytes=int(swapped.get("index_bytes", 0)),
        lock_milliseconds=float(swapped.get("lock_milliseconds", 0)),
        table_bytes_before=schema.get("table_bytes_before"),
        table_bytes_after=status.bytes,
        old_vector_bytes=vector_bytes(settings.legacy_dimensions),
        new_vector_bytes=vector_bytes(settings.embedding_dimensions),
    )


def vector_bytes(dimensions: int) -> int:
    """Bytes of one pgvector `vector`: four a dimension and eight of header."""
    return 4 * dimensions + 8


def _plain(materialization: dg.AssetMaterialization) -> Mapping[str, Any]:
    return {name: value.value for name, value in materialization.metadata.items()}


def _latest(materializations: Sequence[dg.AssetMaterialization]) -> Mapping[str, Any]:
    return _plain(materializations[-1]) if materializations else {}


def _total(parts: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(part.get(name, 0)) for part in parts)


def _rate(rows: int, seconds: float) -> float:
    return rows / seconds if seconds else 0.0


def _mebibytes(size: int) -> str:
    return f"{size / _MEBIBYTE:,.1f} MiB"
