"""Writing 384-d vectors into a table that has its 1536-d ones, by this project's way and by what people use instead.

Run: python -m benchmarks.write --rows 50000 --table-rows 100000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extras import execute_batch, execute_values
from sqlalchemy import text

from benchmarks.harness import Measurement, Results
from bge_pipeline.database.binary_copy import staged_vectors
from bge_pipeline.database.connection import Database
from bge_pipeline.database.reader import PendingBatch, read_pending
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import VectorWriter
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.phases.expand import expand
from bge_pipeline.settings import Settings, load_settings

Vectors = NDArray[np.float32]
Way = Callable[[Database, PendingBatch, Vectors], None]
COLUMN = "embedding_384"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table-rows", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--rows", type=int, default=20_000, help="rows that each way writes in each round")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs, of which the median counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = load_settings(bge_pipeline_home=home, embedding_model="hashing", old_index="keep")
        with Database.from_settings(settings) as database:
            create_demo_table(database, settings, arguments.table_rows, with_index=False)
            expand(database, settings, configured_space(settings))
            bare = measure(database, settings, WAYS, arguments.rows, arguments.rounds)
            with database.autocommit() as connection:
                connection.execute(text("SET maintenance_work_mem = '1GB'"))
                connection.execute(
                    text(
                        "CREATE INDEX old_ivfflat ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists=100)"
                    )
                )
            indexed = measure(database, settings, {OURS: WAYS[OURS]}, arguments.rows, arguments.rounds)
    publish(bare | {f"{OURS}, old IVFFlat index still there": indexed[OURS]}, arguments.rows, arguments.table_rows)


def measure(
    database: Database, settings: Settings, ways: dict[str, Way], rows: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each way in each round; the ways take turns, and each begins with an empty column."""
    target = TargetTable.from_settings(settings)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors = np.random.default_rng(0).standard_normal((rows, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for _ in range(rounds):
        for name, write in ways.items():
            with database.autocommit() as connection:
                connection.execute(text(f"UPDATE segments SET {COLUMN} = NULL WHERE {COLUMN} IS NOT NULL"))
                connection.execute(text("VACUUM ANALYZE segments"))
                batch = next(read_pending(connection, target, COLUMN, rows))
            started = time.perf_counter()
            write(database, batch, vectors)
            seconds[name].append(time.perf_counter() - started)
            with database.autocommit() as connection:
                written = connection.execute(text(f"SELECT count({COLUMN}) FROM segments")).scalar_one()
            assert name.startswith("side table") or written == rows, f"{name} wrote {written} of {rows} rows"
    return seconds


def ours(batch_rows: int) -> Way:
    def write(database: Database, batch: PendingBatch, vectors: Vectors) -> None:
        target = TargetTable("public", "segments", "id", "text", "embedding")
        with VectorWriter(database, target, COLUMN, "integer", 384) as writer:
            for first, last in _slices(len(batch), batch_rows):
                writer.write(batch.only(range(first, last)), vectors[first:last])

    return write


def one_by_one(database: Database, batch: PendingBatch, vectors: Vectors) -> None:
    _by_driver(
        database,
        batch,
        lambda cursor, rows: execute_batch(
            cursor,
            f"UPDATE segments SET {COLUMN} = %s WHERE id = %s",
            [(_text(vectors[i]), batch.ids[i]) for i in rows],
        ),
    )


def values(database: Database, batch: PendingBatch, vectors: Vectors) -> None:
    statement = f"UPDATE segments t SET {COLUMN} = v.e::vector FROM (VALUES %s) AS v (id, e) WHERE t.id = v.id"
    _by_driver(
        database,
        batch,
        lambda cursor, rows: execute_values(
            cursor, statement, [(batch.ids[i], _text(vectors[i])) for i in rows], page_size=1_000
        ),
    )


def side_table(database: Database, batch: PendingBatch, vectors: Vectors) -> None:
    """The upper bound: vectors that need not find their row."""
    connection = database.engine.raw_connection()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS side (id bigint, version xid, vector vector(384)); TRUNCATE side")
        connection.commit()
        for first, last in _slices(len(batch), 1_000):
            stream = staged_vectors("integer", batch.ids[first:last], batch.versions[first:last], vectors[first:last])
            cursor.copy_expert("COPY side FROM STDIN (FORMAT binary)", stream)
            connection.commit()
    connection.close()


OURS = "binary COPY + UPDATE, 1,000 rows a commit (ours)"
EXECUTE_VALUES = "UPDATE FROM (VALUES ...), execute_values, 1,000 rows"
WAYS: dict[str, Way] = {
    "UPDATE one by one, execute_batch": one_by_one,
    EXECUTE_VALUES: values,
    OURS: ours(1_000),
    "the same, 5,000 rows a commit": ours(5_000),
    "side table, binary COPY alone": side_table,
}


def publish(seconds: dict[str, list[float]], rows: int, table_rows: int) -> None:
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    table = [
        [name, f"{rows / median:,.0f}", f"{medians[EXECUTE_VALUES] / median:.1f}"] for name, median in medians.items()
    ]
    Measurement(
        "write",
        f"{rows:,} vectors of 384 dimensions into a table of {table_rows:,} rows with 1536-d vectors, trigger and pending "
        "index in place; medians of interleaved rounds.",
        [Results("Writing", ["way", "rows/s", "times execute_values"], table)],
    ).publish()


def _by_driver(database: Database, batch: PendingBatch, write: Callable[[Any, range], None]) -> None:
    connection = database.engine.raw_connection()
    with connection.cursor() as cursor:
        for first, last in _slices(len(batch), 1_000):
            write(cursor, range(first, last))
            connection.commit()
    connection.close()


def _slices(rows: int, size: int) -> Sequence[tuple[int, int]]:
    return list(pairwise([*range(0, rows, size), rows]))


def _text(vector: Vectors) -> str:
    return f"[{','.join(map(str, vector.tolist()))}]"


if __name__ == "__main__":
    main()
