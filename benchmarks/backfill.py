"""A table of any size through all phases with the cheap encoder: rate, overlap of the stages, memory, the swap's lock.

The encoder is hashed words, so that the database's share is seen; each size runs in a process of its own.

Run: python -m benchmarks.backfill --rows 100000 1000000     (1M rows of 1536 dimensions need some 15 GB of disk)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.retire import retire
from bge_pipeline.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="table sizes, each run by itself")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(run(arguments.only)))
        return
    results = [in_a_process_of_its_own(rows) for rows in arguments.rows]
    rows = [
        [
            f"{found['rows']:,}",
            f"{found['rows'] / found['seconds']:,.0f}",
            f"{found['rows'] / found['write_seconds']:,.0f}",
            *(f"{100 * found[stage] / found['seconds']:.0f}%" for stage in STAGES),
            f"{found['peak_memory_bytes'] / 2**20:,.0f}",
            f"{found['index_seconds']:,.1f}",
            f"{found['lock_milliseconds']:,.0f}",
            f"{found['swap_seconds']:,.0f}",
        ]
        for found in results
    ]
    columns = [
        "rows",
        "rows/s",
        "rows/s of the writer",
        *("share of time in " + stage.removesuffix("_seconds") for stage in STAGES),
        "peak MiB",
        "index s",
        "lock ms",
        "swap s in all",
    ]
    Measurement(
        "backfill",
        f"A demo table with {load_settings().legacy_dimensions}-d old vectors and no index on them goes through expand, "
        "backfill, swap and retire.",
        [Results("All phases, cheap encoder", columns, rows)],
        [
            "The stages run at the same time, so that their shares add up to more than 100%.",
            "The swap in all: index build, search effort, quality gate with exact searches, exchange.",
        ],
    ).publish()


STAGES = ("read_seconds", "tokenize_seconds", "encode_seconds", "write_seconds")


def in_a_process_of_its_own(rows: int) -> dict[str, Any]:
    """Peak memory is a fact about a process, so every size has its own."""
    command = [sys.executable, "-m", "benchmarks.backfill", "--only", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parent.parent)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(rows: int) -> dict[str, Any]:
    """Figures of one size, on an embedded server made for it and removed after it."""
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = load_settings(bge_pipeline_home=home, embedding_model="hashing")
        # The table is made in a process of its own too, whose memory is not the backfill's.
        subprocess.run([sys.executable, "-c", _LOAD, home, str(rows)], check=True, cwd=Path(__file__).parent.parent)
        with Database.from_settings(settings) as database, open_service(database, settings) as service:
            started = time.perf_counter()
            result = migrate(database, settings, service)
            seconds = time.perf_counter() - started
            retire(database, settings)
        return (
            result.backfill.as_metadata()
            | {name: getattr(result.swap, name) for name in ("index_seconds", "lock_milliseconds", "index_bytes")}
            | {"swap_seconds": seconds - result.backfill.seconds}
        )


_LOAD = """
import sys
from benchmarks.backfill import load
load(sys.argv[1], int(sys.argv[2]))
"""


def load(home: str, rows: int) -> None:
    """Make the demo table; the server stays for the process that waits for this one."""
    settings = load_settings(bge_pipeline_home=home, embedding_model="hashing")
    with Database.from_settings(settings) as database:
        create_demo_table(database, settings, rows, with_index=False)


if __name__ == "__main__":
    main()
