"""What a run of Dagster costs beside the plain function: the same partition through both.

Run: python -m benchmarks.dagster_overhead --rows 2000
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from benchmarks.encode import RANDOM_MODEL
from benchmarks.harness import Measurement, Results
from benchmarks.shapes import BGE_SMALL, bge_small
from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.orchestration.dagster_home import environment
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings, load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000, help="rows of the table, which is one partition")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs, of which the median counts")
    parser.add_argument(
        "--model", default=RANDOM_MODEL, help="`random` (BGE-small's shape), `bundled`, a folder or a hub name"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        is_random = arguments.model == RANDOM_MODEL
        model = str(bge_small(Path(home) / "bge-small-shape")) if is_random else arguments.model
        settings = load_settings(bge_pipeline_home=home, embedding_model=model, partition_rows=10_000_000)
        with Database.from_settings(settings) as database:
            create_demo_table(database, settings, arguments.rows, with_index=False)
            with open_service(Migration(database, settings)) as service:
                expand(Migration(database, settings), service.space)
            _dagster(settings, "expand_job")
            plain, through = [], []
            for _ in range(arguments.rounds):
                plain.append(_plain(database, settings))
                _empty(database)
                through.append(_dagster(settings, "backfill_job", _partition(database)))
                _empty(database)
    base, whole = statistics.median(plain), statistics.median(through)
    default = load_settings().partition_rows
    share = (whole - base) / (base * default / arguments.rows)
    row = [f"{arguments.rows:,}", f"{base:.1f}", f"{whole:.1f}", f"{whole - base:.1f}", f"{share:.1%}"]
    Measurement(
        "dagster_overhead",
        f"One partition, embedded with {BGE_SMALL if is_random else arguments.model}: by the plain function in a process that "
        "has the model loaded, and by `dagster job execute` from its start to its end: interpreter, code location, model and "
        "asset checks included.",
        [
            Results(
                "A partition",
                [
                    "rows",
                    "plain function, s",
                    "dagster job execute, s",
                    "difference, s",
                    f"of a partition of {default:,} rows",
                ],
                [row],
            )
        ],
        [
            "The difference does not grow with the rows, so that the last column divides it by the time of a default partition."
        ],
    ).publish()


def _plain(database: Database, settings: Settings) -> float:
    with open_service(Migration(database, settings)) as service:
        started = time.perf_counter()
        backfill(Migration(database, settings), service.encoder)
        return time.perf_counter() - started


def _dagster(settings: Settings, job: str, partition: str | None = None) -> float:
    tags = ["--tags", f'{{"dagster/partition": "{partition}"}}'] if partition else []
    command = [
        str(Path(sys.executable).with_name("dagster")),
        "job",
        "execute",
        "-m",
        "bge_pipeline.definitions",
        "-j",
        job,
    ]
    started = time.perf_counter()
    subprocess.run([*command, *tags], env=dict(os.environ) | environment(settings), check=True, capture_output=True)
    return time.perf_counter() - started


def _partition(database: Database) -> str:
    with database.autocommit() as connection:
        lower, upper = connection.execute(text("SELECT min(id), max(id) + 1 FROM segments")).one()
    return f"{lower:019d}_{upper:019d}"


def _empty(database: Database) -> None:
    with database.autocommit() as connection:
        connection.execute(text("UPDATE segments SET embedding_384 = NULL"))
        connection.execute(text("VACUUM ANALYZE segments"))


if __name__ == "__main__":
    main()
