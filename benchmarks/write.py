"""Writing 384-d vectors into a table that has its 1536-d ones, by this project's way and by what people use instead.

Run: python -m benchmarks.write --rows 50000 --table-rows 100000
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extras import execute_batch, execute_values
from sqlalchemy import Connection, text

from benchmarks.expanded_table import expanded_table
from benchmarks.harness import Measurement, Results
from bge_pipeline.database.binary_copy import staged_vectors
from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.database.pending_reader import PendingBatch, read_pending
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import CommitRules, Destination, VectorWriter
from bge_pipeline.settings import Settings

Vectors = NDArray[np.float32]
Way = Callable[[Database, PendingBatch, Vectors], None]
COLUMN = "embedding_384"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table-rows", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--rows", type=int, default=20_000, help="rows that each way writes in each round")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs, of which the median counts")
    parser.add_argument(
        "--old-indexes",
        nargs="*",
        default=["IVFFlat"],
        choices=["IVFFlat", "HNSW"],
        help="indexes on the old column to try",
    )
    arguments = parser.parse_args()
    with expanded_table(arguments.table_rows) as migration:
        database, settings = migration.database, migration.settings
        rates = measure(database, settings, WAYS, arguments.rows, arguments.rounds)
        for name, definition, share in OLD_INDEXES:
            if name in arguments.old_indexes:
                rows = max(1_000, int(arguments.rows * share))
                with old_index(database, definition):
                    found = measure(database, settings, {OURS: WAYS[OURS]}, rows, arguments.rounds)
                rates[f"ours, old {name} index of 1536 dimensions still there"] = found[OURS]
    publish(rates, arguments.rows, arguments.table_rows)


@contextmanager
def old_index(database: Database, definition: str) -> Iterator[None]:
    """An index on the old column for the time of a measurement."""
    with database.autocommit() as connection:
        connection.execute(text("SET maintenance_work_mem = '2GB'"))
        connection.execute(text(f"CREATE INDEX old_index ON segments USING {definition}"))
        connection.invalidate()
    try:
        yield
    finally:
        with database.autocommit() as connection:
            connection.execute(text("DROP INDEX old_index"))


def measure(database: Database, settings: Settings, ways: dict[str, Way], rows: int, rounds: int) -> dict[str, float]:
    """Rows per second of each way, the median of the rounds; the ways take turns, and each begins with an empty column."""
    target = TargetTable.from_settings(settings)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors = np.random.default_rng(0).standard_normal((rows, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for _ in range(rounds):
        for name, write in ways.items():
            with database.autocommit() as connection:
                connection.execute(text(f"UPDATE segments SET {COLUMN} = NULL WHERE {COLUMN} IS NOT NULL"))
                connection.execute(text("VACUUM ANALYZE segments"))
                batch = first_rows(connection, target, rows)
            started = time.perf_counter()
            write(database, batch, vectors)
            seconds[name].append(time.perf_counter() - started)
            with database.autocommit() as connection:
                written = connection.execute(text(f"SELECT count({COLUMN}) FROM segments")).scalar_one()
            assert name.startswith("side table") or written == rows, f"{name} wrote {written} of {rows} rows"
    return {name: rows / statistics.median(found) for name, found in seconds.items()}


def first_rows(connection: Connection, target: TargetTable, rows: int, id_range: IdRange | None = None) -> PendingBatch:
    """As many pending rows of the range (None: of the table), in the order in which a backfill takes them."""
    batch = PendingBatch([], [], [])
    for more in read_pending(connection, target, COLUMN, rows, id_range):
        batch = batch.joined(more)
        if len(batch) >= rows:
            break
    return batch.only(range(rows))


def ours(batch_rows: int) -> Way:
    def write(database: Database, batch: PendingBatch, vectors: Vectors) -> None:
        target = TargetTable("public", "segments", ("id",), "text", "embedding")
        with database.autocommit() as connection:
            number = describe_table(connection, target).columns[COLUMN].number
        rules = CommitRules(Settings.model_fields["backfill_max_lock_ms"].default, batch_rows)
        with VectorWriter(database, Destination(target, COLUMN, number, INTEGERS, 384), rules) as writer:
            for first, last in _slices(len(batch), batch_rows):
                rows = batch.only(range(first, last))
                for piece in writer.pieces(rows):
                    writer.write(rows.only(range(piece.start, piece.stop)), vectors[first:last][piece])

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
        cursor.execute(
            "DROP TABLE IF EXISTS side; CREATE TABLE side (id bigint, version xid, digest uuid, v vector(384))"
        )
        connection.commit()
        for first, last in _slices(len(batch), 1_000):
            part = batch.only(range(first, last))
            stream = staged_vectors(INTEGERS, part.ids, part.versions, part.digests, vectors[first:last])
            cursor.copy_expert("COPY side FROM STDIN (FORMAT binary)", stream)
            connection.commit()
    connection.close()


OURS = "binary COPY + UPDATE, 1,000 rows a commit (ours)"
EXECUTE_VALUES = "UPDATE FROM (VALUES ...), execute_values, 1,000 rows"
OLD_INDEXES = (
    ("IVFFlat", "ivfflat (embedding vector_cosine_ops) WITH (lists = 100)", 1.0),
    ("HNSW", "hnsw (embedding vector_cosine_ops)", 0.05),
)
"""Name, definition, and the share of the rows that is written: into an HNSW index a hundredth of the usual rate."""
WAYS: dict[str, Way] = {
    "UPDATE one by one, execute_batch": one_by_one,
    EXECUTE_VALUES: values,
    OURS: ours(1_000),
    "the same, 5,000 rows a commit": ours(5_000),
    "side table, binary COPY alone": side_table,
}


def publish(rates: dict[str, float], rows: int, table_rows: int) -> None:
    table = [[name, f"{rate:,.0f}", f"{rate / rates[EXECUTE_VALUES]:.1f}"] for name, rate in rates.items()]
    Measurement(
        f"write_{table_rows // 1_000}k",
        f"{rows:,} vectors of 384 dimensions into a table of {table_rows:,} rows with 1536-d vectors, trigger and pending "
        "index in place; medians of interleaved rounds.",
        [Results("Writing", ["way", "rows/s", "times execute_values"], table)],
        [f"Load of the machine while this ran: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores."],
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
