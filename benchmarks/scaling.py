"""Write docs/scaling.md: a million, a hundred million and a billion rows, reckoned from the results of the other benchmarks.

Run: python -m benchmarks.scaling
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from bge_pipeline.database.indexes import hnsw_memory_bytes, ivfflat_memory_bytes, recommended_lists
from bge_pipeline.duration import duration

DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
SIZES = (1_000_000, 100_000_000, 1_000_000_000)
DIMENSIONS = 384
ASSUMED_GPU = 1_500
"""Texts of a transcript a second, assumed of BGE-small on a consumer GPU; not measured here."""
PAGE = """# From a million rows to a billion

Written by `python -m benchmarks.scaling` from the files in `benchmarks/results/`: what was measured there is multiplied, and no
table of these sizes was migrated but the one of a million rows. Encoding on a GPU is an assumed {gpu:,} texts a
second, not a measurement of ours (`python -m benchmarks.gpu_rate` measures yours). BGE-small, 384 dimensions, `vector`, one
table.

## What one migration takes

{table}
- *Writing* is one worker's rate into one table with nothing to embed ({writer:,} rows/s at a million rows, `backfill.json`);
  several workers into one table were not measured, so that the column stays as it is for a fleet.
- *Log* is {log:,} bytes a row ({kept} kept, `log_volume.json`); replicas have to take it, archives to keep it.
- *Index* is IVFFlat's build at a million rows ({index} s) by the rows, its k-means left out. Memory is what pgvector asks of
  `maintenance_work_mem`; with less HNSW gets slow, and IVFFlat takes fewer lists.
- *Disk* is the new vectors, their index and the log of an hour, or of the whole where that is less, with eight GPUs.

## Which part is the narrowest, and what to change then

- **The encoder**, with fewer than {gpus} such GPUs, at every size: add workers. Each partition is a Dagster run of its own; give
  the pool `encoder` a limit of as many runs as there are GPUs ([deploy](../deploy/README.md)).
- **The writer**, beyond that: more GPUs bring nothing to one table. Several tables are separate migrations and add up; the
  partitions of one table are one. `INDEX_ELEMENT=halfvec` halves what is built.
- **The index** of a billion rows does not fit into the memory of one build: partition the table by what searches filter by
  (each partition [has its own](tables.md#partitioned-tables)), or build with fewer lists and rerank.
- **Search** while all that goes on: a replica, on which `bge-pipeline doctor` and `search` work as they are.
- **Dagster** takes {dagster} s a partition more than the plain function (`dagster_overhead.json`); PARTITION_ROWS=50,000 makes
  20,000 partitions of a billion rows: take a million rows each there, or twenty partitions a run (`PARTITIONS_PER_RUN`). Cutting
  the table reads its statistics, or 16 pages for each partition where ids have gaps, and not its rows.

## Not measured

Several writers into one table; any GPU by a command of this repository; tables above ten million rows; HNSW builds above a
million; the price of anything.
"""


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"written to {DOCUMENT}")


def document() -> str:
    """The page as it has to be."""
    backfill = _row("backfill", "1,000,000")
    volume = _row("log_volume", "HNSW")
    writer, index_seconds = _number(backfill["rows/s"]), _number(backfill["index s"])
    log = _number(volume["log of the backfill"]) + _number(volume["log of the new index"])
    index_bytes = _number(volume["new index"])
    columns = [
        "rows",
        f"embedding, 1 GPU at {ASSUMED_GPU:,}/s",
        "8 GPUs",
        "writing",
        "IVFFlat, building",
        "log, GB",
        "disk, GB",
        "memory of the build, IVFFlat / HNSW, GB",
    ]
    rows = []
    for size in SIZES:
        one, eight, writing = size / ASSUMED_GPU, size / (8 * ASSUMED_GPU), size / writer
        narrowest = max(eight, writing)
        disk = size * (4 * DIMENSIONS + 8 + index_bytes + log * min(1.0, 3_600 / narrowest))
        lists = recommended_lists(size)
        memory = ivfflat_memory_bytes(lists, DIMENSIONS, "vector"), hnsw_memory_bytes(size, DIMENSIONS, 16, "vector")
        rows.append(
            [
                f"{size:,}",
                *(duration(seconds) for seconds in (one, eight, writing, size / 1_000_000 * index_seconds)),
                f"{log * size / 1e9:,.0f}",
                f"{disk / 1e9:,.0f}",
                " / ".join(f"{size / 1e9:,.1f}" for size in memory),
            ]
        )
    return PAGE.format(
        gpu=ASSUMED_GPU,
        table=_table(columns, rows),
        writer=round(writer),
        log=round(log),
        kept="an old HNSW index",
        index=f"{index_seconds:.0f}",
        gpus=f"{writer / ASSUMED_GPU:.0f}",
        dagster=f"{_number(_row('dagster_overhead', '2,000')['difference, s']):.0f}",
    )


def _row(name: str, first: str) -> dict[str, str]:
    """The row of a result's first table that begins so."""
    table: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["tables"][0]
    (row,) = (row for row in table["rows"] if row[0] == first)
    return dict(zip(table["columns"], row, strict=True))


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
