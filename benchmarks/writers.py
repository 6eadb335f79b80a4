"""Several processes that write vectors into one table at once, each into a range of ids of its own, as a fleet does.

Nothing is encoded while the time is taken: the vectors are in memory, and so are the ids that they belong to.

Run: python -m benchmarks.writers --rows 200000
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from itertools import pairwise
from multiprocessing.synchronize import Barrier

import numpy as np
from sqlalchemy import text

from benchmarks.expanded_table import expanded_table
from benchmarks.harness import Measurement, Results
from benchmarks.write import COLUMN, first_rows, ours
from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.database.target import TargetTable
from bge_pipeline.settings import Settings, load_settings

BATCH_ROWS = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=200_000, help="rows of the table, all of which are written in each turn"
    )
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes to try")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved turns, of which the median counts")
    arguments = parser.parse_args()
    with expanded_table(arguments.rows) as migration:
        seconds: dict[int, list[float]] = {writers: [] for writers in arguments.writers}
        for _ in range(arguments.rounds):
            for writers, found in seconds.items():
                found.append(together(migration.database, migration.settings, arguments.rows, writers))
    rates = {writers: arguments.rows / float(np.median(found)) for writers, found in seconds.items()}
    alone = rates[min(rates)]
    Measurement(
        "writers",
        f"{arguments.rows:,} vectors of 384 dimensions into a table that has its 1536-d ones, trigger and pending index in "
        f"place and no index on the old column, by several processes, {BATCH_ROWS:,} rows a commit; medians of "
        f"{arguments.rounds} interleaved turns.",
        [
            Results(
                "Several writers into one table",
                ["writers", "rows/s of all", "times one"],
                [[str(writers), f"{rate:,.0f}", f"{rate / alone:.2f}"] for writers, rate in rates.items()],
            )
        ],
        [f"Writers and server share {os.cpu_count()} cores: with more of them the ratios are others."],
    ).publish()


def together(database: Database, settings: Settings, rows: int, writers: int) -> float:
    """Seconds from when all begin until the last one ends; the column is empty before."""
    with database.autocommit() as connection:
        connection.execute(text(f"UPDATE segments SET {COLUMN} = NULL WHERE {COLUMN} IS NOT NULL"))
        connection.execute(text("VACUUM ANALYZE segments"))
        connection.execute(text("CHECKPOINT"))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers + 1)
    bounds = [1 + number * rows // writers for number in range(writers + 1)]
    processes = [
        context.Process(target=write_range, args=(str(settings.home), lower, upper, barrier))
        for lower, upper in pairwise(bounds)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - started
    with database.autocommit() as connection:
        written = connection.execute(text(f"SELECT count({COLUMN}) FROM segments")).scalar_one()
    assert written == rows, f"{writers} writers wrote {written} of {rows} rows"
    return seconds


def write_range(home: str, lower: int, upper: int, barrier: Barrier) -> None:
    """In a process of its own: write `[lower, upper)` once all others are ready."""
    settings = load_settings(bge_pipeline_home=home, embedding_model="hashing")
    rows = upper - lower
    vectors = np.random.default_rng(lower).standard_normal((rows, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Database.from_settings(settings) as database:
        with database.autocommit() as connection:
            target = TargetTable.from_settings(settings)
            batch = first_rows(connection, target, rows, IdRange(lower, upper, INTEGERS))
        barrier.wait()
        ours(BATCH_ROWS)(database, batch, vectors)


if __name__ == "__main__":
    main()
