"""Write docs/scaling.md: a million, a hundred million and a billion rows, reckoned from the results of the other benchmarks.

Run: python -m benchmarks.scaling
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, number, result_row
from bge_pipeline.database.indexes import hnsw_memory_bytes, ivfflat_memory_bytes, recommended_lists
from bge_pipeline.duration import duration

DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
SIZES = (1_000_000, 100_000_000, 1_000_000_000)
DIMENSIONS = 384
ASSUMED_GPU = 1_500
"""Texts of a transcript a second, assumed of BGE-small on a consumer GPU; not measured here."""
ASSUMED_GPU_HOUR = 0.50
"""Dollars for such a GPU; what yours costs is on its provider's page."""
ASSUMED_ENDPOINT_TOKENS = 5_000_000
"""Tokens a minute that an account at a hosted endpoint may send."""
ASSUMED_MILLION_TOKENS = 0.02
"""Dollars that the endpoint asks for a million tokens."""
PAGE = """# From a million rows to a billion

Written by `python -m benchmarks.scaling` from the files in `benchmarks/results/`: what was measured there is multiplied. Of the
sizes below only a million rows was migrated; what [ten million](#what-ten-million-rows-showed) showed stands further down.
BGE-small, 384 dimensions, `vector`, one table.

Assumed, not measured: a GPU that embeds {gpu:,} texts a second (`python -m benchmarks.gpu_rate` measures yours) and costs
{gpu_hour:.2f} dollars an hour; an endpoint that takes {endpoint_tokens} million tokens a minute at {million_tokens:.2f} dollars a
million; {tokens:.0f} tokens a text, as in the mixed texts of `benchmarks.encode`. The constants stand at the head of
`benchmarks/scaling.py`: put in yours and run it.

## Time

{time}
- *Writing* is one worker's rate into one table with nothing to embed ({writer:,} rows/s at a million rows, `backfill.json`); it
  goes on while texts are embedded. {writers}
- *Index* is IVFFlat's build on those two cores. It compares each row with the centre of every list, and above a million rows
  the lists are the square root of the rows: {fixed} microseconds a row and {by_list} more for each of a hundred lists, from
  {small} s for 100,000 rows in 100 lists and {index} s for a million in 1,000. It is shared by as many processes as
  `INDEX_BUILD_WORKERS` says. With `INDEX_LISTS=1000` a billion rows take {few_lists}; their lists are then long to read.
- *Gate* is its time at a million rows ({gate} s) by the rows: search effort and gate read the column once, together. That is
  too much: ten million took {gate_growth} times as long as a million. The exchange and its lock do not grow with the rows
  ({lock} ms).
- *The whole* is the longer one of embedding and writing, then index and gate.

## Money, disk, log and memory

{money}
- *One GPU* and *eight* cost the same as long as embedding is the longer part; with eight the writer is soon the longer one, and
  GPUs wait for it.
- *Log* is {log:,} bytes a row ({kept} kept, `log_volume.json`); replicas have to take it, archives to keep it.
- *Disk* is the new vectors, their index and the log of an hour, or of the whole where that is less, with eight GPUs.
- *Memory of the build* is what pgvector asks of `maintenance_work_mem`, IVFFlat / HNSW; with less HNSW gets slow, and IVFFlat
  takes fewer lists.

## What ten million rows showed

{ten}
The whole migration, alone on {ten_hardware} (`backfill_10M.json`). Both sizes have 1,000 lists (`INDEX_LISTS`), and old
vectors of {old} dimensions, so that ten million rows fit on a small disk: they are written faster than the million rows above.
That was on a server with the 128 MB of `shared_buffers` that initdb leaves. With the quarter of the memory that PostgreSQL's
manual advises, expand and backfill alone, both sizes in one run (`backfill_10M_rate.json`):

{ten_rate}

## Which part is the narrowest, and what to change then

- **The encoder**, with fewer than {gpus} such GPUs, at every size: add workers. Each partition is a Dagster run of its own; give
  the pool `encoder` a limit of as many runs as there are GPUs ([deploy](../deploy/README.md)).
- **The writer**, beyond that: more GPUs bring little to one table. Several tables are separate migrations and add up; the
  partitions of one table are one. `INDEX_ELEMENT=halfvec` halves what is built.
- **An endpoint's limit of tokens**: several accounts or replicas behind one address; a server of your own (TEI, vLLM) has none
  ([endpoints](endpoints.md)).
- **The index**, above some ten million rows on two cores: a server with more of them builds it in as many processes
  (`INDEX_BUILD_WORKERS`, at most half of the processors by default), and `INDEX_LISTS` takes fewer lists than the square root.
  That of a billion rows does not fit into the memory of one build: partition the table by what searches filter by
  (each partition [has its own](tables.md#partitioned-tables)), or build with fewer lists and rerank. An index of single
  bits, a thirty-second of it, is yours to build after the swap (pgvector's `binary_quantize`); searches through it have to rerank
  by the whole vectors, and neither the gate nor [search](search.md) here knows of it.
- **Search** while all that goes on: a replica, on which `bge-pipeline doctor` and `search` work as they are.
- **Dagster** takes {dagster} s a partition more than the plain function (`dagster_overhead.json`); PARTITION_ROWS=50,000 makes
  20,000 partitions of a billion rows: take a million rows each there, or twenty partitions a run (`PARTITIONS_PER_RUN`). What
  ten thousand partitions do to sensors and UI is in [benchmarks.md](benchmarks.md). Cutting the table reads its statistics, or
  16 pages for each partition where ids have gaps, and not its rows.

## Not measured

Any GPU or hosted endpoint; several writers on a machine with more cores than two; swaps above ten million rows; HNSW builds above
a million.
"""


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"written to {DOCUMENT}")


@dataclass(frozen=True)
class Rates:
    """What was measured, for one row."""

    write_seconds: float
    index_seconds: float
    index_seconds_by_list: float
    gate_seconds: float
    log_bytes: float
    index_bytes: float
    tokens: float

    def index(self, rows: int, lists: int) -> float:
        """Seconds of the build of an IVFFlat index: each row is compared with the centre of every list."""
        return rows * (self.index_seconds + self.index_seconds_by_list * lists)


@dataclass(frozen=True)
class Way:
    """A way to have texts embedded: texts a second, and dollars a text or an hour."""

    name: str
    texts_per_second: float
    dollars_a_text: float = 0.0
    dollars_an_hour: float = 0.0

    def embedding(self, rows: int) -> float:
        """Seconds."""
        return rows / self.texts_per_second

    def filling(self, rows: int, rates: Rates) -> float:
        """Seconds until all rows have their vectors."""
        return max(self.embedding(rows), rows * rates.write_seconds)

    def dollars(self, rows: int, rates: Rates) -> float:
        """Of the embedding; GPUs are paid for until all is written."""
        return rows * self.dollars_a_text + self.dollars_an_hour * self.filling(rows, rates) / 3_600


def ways(tokens: float) -> tuple[Way, Way, Way]:
    """The ways of the page."""
    per_second = ASSUMED_ENDPOINT_TOKENS / 60 / tokens
    return (
        Way("1 GPU", ASSUMED_GPU, dollars_an_hour=ASSUMED_GPU_HOUR),
        Way("8 GPUs", 8 * ASSUMED_GPU, dollars_an_hour=8 * ASSUMED_GPU_HOUR),
        Way("endpoint", per_second, dollars_a_text=tokens * ASSUMED_MILLION_TOKENS / 1e6),
    )


def measured() -> Rates:
    """The rates that the results say, at a million rows; of the index, from two sizes with different lists."""
    backfill, swapped = result_row("backfill", "1,000,000"), result_row("backfill", "1,000,000", table=1)
    small, large = (
        (recommended_lists(rows), number(result_row("backfill", f"{rows:,}", table=1)["index s"]) / rows)
        for rows in (100_000, 1_000_000)
    )
    by_list = (large[1] - small[1]) / (large[0] - small[0])
    volume = result_row("log_volume", "HNSW")
    (encode,) = RESULTS.glob("encode-*.json")
    return Rates(
        write_seconds=1 / number(backfill["rows/s"]),
        index_seconds=small[1] - by_list * small[0],
        index_seconds_by_list=by_list,
        gate_seconds=number(swapped["gate s"]) / 1e6,
        log_bytes=number(volume["log of the backfill"]) + number(volume["log of the new index"]),
        index_bytes=number(volume["new index"]),
        tokens=json.loads(encode.read_text(encoding="utf-8"))["kinds"]["mixed"]["tokens_mean"],
    )


def document() -> str:
    """The page as it has to be."""
    rates = measured()
    embedders = ways(rates.tokens)
    million = result_row("backfill", "1,000,000", table=1)
    return PAGE.format(
        gpu=ASSUMED_GPU,
        gpu_hour=ASSUMED_GPU_HOUR,
        endpoint_tokens=ASSUMED_ENDPOINT_TOKENS // 1_000_000,
        million_tokens=ASSUMED_MILLION_TOKENS,
        tokens=rates.tokens,
        time=_times(rates, embedders),
        money=_costs(rates, embedders),
        ten=_markdown("backfill_10M"),
        ten_rate=_markdown("backfill_10M_rate"),
        ten_hardware=_result("backfill_10M")["hardware"],
        old=re.findall(r"(\d+)-d old vectors", _result("backfill_10M")["about"])[0],
        writer=round(1 / rates.write_seconds),
        writers=_writers(),
        small=result_row("backfill", "100,000", table=1)["index s"],
        index=million["index s"],
        fixed=f"{1e6 * rates.index_seconds:.0f}",
        by_list=f"{1e8 * rates.index_seconds_by_list:.0f}",
        few_lists=duration(rates.index(SIZES[-1], 1_000)),
        gate=million["gate s"],
        gate_growth=_growth("backfill_10M", "gate s"),
        lock=million["lock ms"],
        log=round(rates.log_bytes),
        kept="an old HNSW index",
        gpus=f"{1 / rates.write_seconds / ASSUMED_GPU:.0f}",
        dagster=f"{number(result_row('dagster_overhead', '2,000')['difference, s']):.0f}",
    )


def _times(rates: Rates, embedders: Sequence[Way]) -> str:
    columns = [
        "rows",
        *(f"embedding, {way.name}" for way in embedders),
        "writing",
        "index",
        "gate",
        *(f"the whole, {way.name}" for way in embedders),
    ]
    rows = []
    for size in SIZES:
        index, gate = rates.index(size, recommended_lists(size)), size * rates.gate_seconds
        seconds = [
            *(way.embedding(size) for way in embedders),
            size * rates.write_seconds,
            index,
            gate,
            *(way.filling(size, rates) + index + gate for way in embedders),
        ]
        rows.append([f"{size:,}", *map(duration, seconds)])
    return _table(columns, rows)


def _costs(rates: Rates, embedders: Sequence[Way]) -> str:
    columns = ["rows", *(f"{way.name}, $" for way in embedders), "log, GB", "disk, GB", "memory of the build, GB"]
    rows = []
    for size in SIZES:
        logged = rates.log_bytes * min(1.0, 3_600 / embedders[1].filling(size, rates))
        disk = size * (4 * DIMENSIONS + 8 + rates.index_bytes + logged)
        memory = (
            ivfflat_memory_bytes(recommended_lists(size), DIMENSIONS, "vector"),
            hnsw_memory_bytes(size, DIMENSIONS, 16, "vector"),
        )
        rows.append(
            [
                f"{size:,}",
                *(f"{way.dollars(size, rates):,.2f}" for way in embedders),
                f"{rates.log_bytes * size / 1e9:,.0f}",
                f"{disk / 1e9:,.0f}",
                " / ".join(f"{size / 1e9:,.1f}" for size in memory),
            ]
        )
    return _table(columns, rows)


def _writers() -> str:
    result = _result("writers")
    table = result["tables"][0]
    _, *others = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    several = ", ".join(f"{row['writers']} to {row['times one']} times" for row in others)
    return (
        f"Several workers that write at once into ranges of their own, on {result['hardware']}, where they share the cores with "
        f"the server, come together to more: {several} the rate of one (`writers.json`)."
    )


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _markdown(name: str) -> str:
    """The tables of a result."""
    return "\n".join(_table(table["columns"], table["rows"]) for table in _result(name)["tables"])


def _growth(name: str, column: str) -> str:
    """How many times as much ten million rows took as a million."""
    small, large = (number(result_row(name, rows, table=1)[column]) for rows in ("1,000,000", "10,000,000"))
    return f"{large / small:.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
