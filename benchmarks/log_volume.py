"""What a backfill writes besides its vectors: bytes of write-ahead log and of disk for each row, by the old index that is kept.

Bytes, not seconds: the same on every machine.

Run: python -m benchmarks.log_volume
"""

from __future__ import annotations

import argparse
import tempfile

from sqlalchemy import Connection, text

from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.vector_index import build_index
from bge_pipeline.settings import load_settings

_OLD_INDEXES = {
    "none": None,
    "IVFFlat": "CREATE INDEX ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 20)",
    "HNSW": "CREATE INDEX ON segments USING hnsw (embedding vector_cosine_ops)",
}

_NOTE = (
    "The new vectors fit into what the old ones left free of their pages: the table hardly grows, and each such page is logged "
    "whole, 8 kB, at its first change after a checkpoint. wal_compression on the server makes less of it."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the table")
    arguments = parser.parse_args()
    rows = [[name, *measured(arguments.rows, statement)] for name, statement in _OLD_INDEXES.items()]
    Measurement(
        "log_volume",
        f"{arguments.rows:,} demo segments move from 1536 to 384 dimensions with the cheap encoder; bytes a row, from the "
        "server's own counters, on a table that nobody else writes to, after a checkpoint.",
        [
            Results(
                "Bytes a row",
                [
                    "old index, kept",
                    "log of the backfill",
                    "table and its out-of-line values",
                    "log of the new index",
                    "new index",
                ],
                rows,
            )
        ],
        [_NOTE],
    ).publish()


def measured(rows: int, index: str | None) -> list[str]:
    """Bytes a row: log of the backfill, growth of the table, log and size of the new index."""
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = load_settings(bge_pipeline_home=home, embedding_model="hashing", old_index="keep")
        with Database.from_settings(settings) as database:
            create_demo_table(database, settings, rows, with_index=False)
            with database.autocommit() as connection:
                if index is not None:
                    connection.execute(text(index))
                connection.execute(text("VACUUM ANALYZE segments"))
            with open_service(Migration(database, settings)) as service:
                expand(Migration(database, settings), service.space)
                with database.autocommit() as connection:
                    connection.execute(text("CHECKPOINT"))
                    before = counters(connection)
                backfill(Migration(database, settings), service.encoder)
                with database.autocommit() as connection:
                    filled = counters(connection)
                built, _ = build_index(Migration(database, settings))
                with database.autocommit() as connection:
                    indexed = counters(connection)
    log, table = ((after - earlier) / rows for after, earlier in zip(filled, before, strict=True))
    return [f"{log:,.0f}", f"{table:,.0f}", f"{(indexed[0] - filled[0]) / rows:,.0f}", f"{built.bytes / rows:,.0f}"]


def counters(connection: Connection) -> tuple[int, int]:
    """Bytes of log written so far, and of the table without its indexes."""
    row = connection.execute(
        text("SELECT pg_current_wal_insert_lsn() - '0/0' AS log, pg_table_size('segments') AS size")
    ).one()
    return int(row.log), int(row.size)


if __name__ == "__main__":
    main()
