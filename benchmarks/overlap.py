"""How much of the encoder's own rate a whole backfill reaches: the demo corpus, encoded alone and backfilled, in turns.

Run: python -m benchmarks.overlap
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

from sqlalchemy import text

from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="rows of the table; the whole corpus by default")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs, of which the median counts")
    parser.add_argument("--model", default="bundled", help="EMBEDDING_MODEL")
    arguments = parser.parse_args()
    alone: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = load_settings(bge_pipeline_home=home, embedding_model=arguments.model)
        with Database.from_settings(settings) as database:
            table = create_demo_table(database, settings, arguments.rows, with_index=False)
            with open_service(Migration(database, settings)) as service:
                expand(Migration(database, settings), service.space)
                with database.autocommit() as connection:
                    texts = list(connection.execute(text("SELECT text FROM segments ORDER BY id")).scalars())
                service.encode_texts(texts[:500])
                for _ in range(arguments.rounds):
                    started = time.perf_counter()
                    service.encode_texts(texts)
                    alone.append(time.perf_counter() - started)
                    with database.autocommit() as connection:
                        connection.execute(text("UPDATE segments SET embedding_384 = NULL"))
                        connection.execute(text("VACUUM ANALYZE segments"))
                    result = backfill(Migration(database, settings), service.encoder)
                    assert result.rows == table.rows, f"{result.rows} of {table.rows} rows were embedded"
                    whole.append(result.seconds)
                precision = service.space.precision
    encoding, backfilling = (table.rows / statistics.median(seconds) for seconds in (alone, whole))
    Measurement(
        "overlap",
        f"{table.rows:,} demo segments, model {arguments.model} in {precision}: encoding alone with all texts in memory, and "
        "the whole backfill (read, tokenise, encode, write, commit every 1,000 rows); medians of interleaved runs.",
        [
            Results(
                "End to end",
                ["rounds", "encoding alone, texts/s", "backfill, rows/s", "share reached"],
                [[str(arguments.rounds), f"{encoding:,.1f}", f"{backfilling:,.1f}", f"{backfilling / encoding:.1%}"]],
            )
        ],
    ).publish()


if __name__ == "__main__":
    main()
