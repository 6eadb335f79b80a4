"""A table of any size through all phases with the cheap encoder: rate, overlap of the stages, memory, the swap's lock.

The encoder is hashed words, so that the database's share is seen; each size runs in a process of its own.

Run: python -m benchmarks.backfill --rows 100000 1000000     (1M rows of 1536 dimensions need some 15 GB of disk)
     LEGACY_DIMENSIONS=64 INDEX_LISTS=1000 python -m benchmarks.backfill --rows 1000000 10000000 --name backfill_10M
                                                                          (55 GB of disk, and an hour on two cores)
     LEGACY_DIMENSIONS=64 python -m benchmarks.backfill --no-swap --rows 10000000 1000000 --name backfill_10M_rate
                                                                          (half an hour: expand and backfill alone)
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
from benchmarks.tuned_server import add_server_argument, shown_settings, start_tuned_server
from bge_pipeline.database.connection import Database, embedded_folder
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.swap import swap
from bge_pipeline.settings import Settings, load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="table sizes, each run by itself")
    parser.add_argument("--no-swap", action="store_true", help="stop after the backfill: no index, no exchange")
    parser.add_argument("--name", default="backfill", help="of the file with the results")
    add_server_argument(parser)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(run(arguments.only, arguments.server, swaps=not arguments.no_swap)))
        return
    flags = [*(["--no-swap"] if arguments.no_swap else []), *(f"--server={setting}" for setting in arguments.server)]
    results = [in_a_process_of_its_own(rows, flags) for rows in arguments.rows]
    filled = [
        [
            f"{found['rows']:,}",
            f"{found['rows'] / found['seconds']:,.0f}",
            f"{found['rows'] / found['write_seconds']:,.0f}",
            *(f"{100 * found[stage] / found['seconds']:.0f}%" for stage in STAGES),
            f"{found['peak_memory_bytes'] / 2**20:,.0f}",
        ]
        for found in results
    ]
    shares = ["share of time in " + stage.removesuffix("_seconds") for stage in STAGES]
    tables = [Results("Expand and backfill", ["rows", "rows/s", "rows/s of the writer", *shares, "peak MiB"], filled)]
    notes = [
        f"The server has {results[0]['server']}.",
        "The stages run at the same time, so that their shares add up to more than 100%.",
    ]
    if not arguments.no_swap:
        tables.append(
            Results(
                "Swap, rollback, swap again and retire",
                ["rows", *(title for _, title, _ in FIGURES)],
                [
                    [f"{found['rows']:,}", *(f"{found[figure]:,.{digits}f}" for figure, _, digits in FIGURES)]
                    for found in results
                ],
            )
        )
        notes.append("The gate: search effort, quality with exact searches, and the new index read into memory.")
    phases = "expand and backfill" if arguments.no_swap else "all phases"
    Measurement(
        arguments.name,
        f"A demo table with {load_settings().legacy_dimensions}-d old vectors and no index on them goes through {phases}; "
        "the encoder is the cheap one.",
        tables,
        notes,
    ).publish()


STAGES = ("read_seconds", "tokenize_seconds", "encode_seconds", "write_seconds")
FIGURES = (
    ("index_seconds", "index s", 1),
    ("gate_seconds", "gate s", 1),
    ("exchange_seconds", "exchange s", 1),
    ("lock_milliseconds", "lock ms", 0),
    ("rollback_seconds", "rollback s", 1),
    ("rollback_lock_milliseconds", "its lock ms", 0),
    ("forward_seconds", "swap again s", 1),
    ("retire_seconds", "retire s", 1),
)


def in_a_process_of_its_own(rows: int, flags: list[str]) -> dict[str, Any]:
    """Peak memory is a fact about a process, so every size has its own."""
    command = [sys.executable, "-m", "benchmarks.backfill", "--only", str(rows), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parent.parent)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(rows: int, server: list[str], *, swaps: bool) -> dict[str, Any]:
    """Figures of one size, on an embedded server made for it and removed after it."""
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = settings_of(home)
        # The table is made in a process of its own too, whose memory is not the backfill's.
        subprocess.run(
            [sys.executable, "-c", _LOAD, home, str(rows), *server], check=True, cwd=Path(__file__).parent.parent
        )
        steps = Steps()
        with Database.from_settings(settings) as database, open_service(Migration(database, settings)) as service:
            memory = {"server": shown_settings(database.url)}
            if not swaps:
                expand(Migration(database, settings), service.space)
                return backfill(Migration(database, settings), service.encoder).as_metadata() | memory
            result = migrate(Migration(database, settings), service, on_step=steps.begin)
            assert result.swap is not None
            steps.begin("rollback")
            back = rollback(Migration(database, settings))
            steps.begin("forward")
            swap(Migration(database, settings_of(home, forward_after_rollback=back.rolled_back)), service)
            steps.begin("retire")
            retire(Migration(database, settings))
            steps.begin("end")
        return (
            result.backfill.as_metadata()
            | memory
            | {name: getattr(result.swap, name) for name in ("index_seconds", "lock_milliseconds")}
            | {"gate_seconds": steps.seconds["quality gate"], "rollback_lock_milliseconds": back.lock_milliseconds}
            | {f"{name}_seconds": steps.seconds[name] for name in ("exchange", "rollback", "forward", "retire")}
        )


def settings_of(home: str, **more: Any) -> Settings:
    """Of every phase; the search effort that the new index needs is set on the server, as `migrate --set-search-effort` does."""
    return load_settings(bge_pipeline_home=home, embedding_model="hashing", server_search_effort="set", **more)


class Steps:
    """How long each step took, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", time.perf_counter()

    def begin(self, name: str) -> None:
        """A step begins, and the one before is over; said on stderr, since a large table takes hours."""
        now = time.perf_counter()
        took = now - self._since
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + took
        print(
            f"{time.strftime('%H:%M:%S')}  {self._name or 'start'}: {took:,.1f} s; now {name}",
            file=sys.stderr,
            flush=True,
        )
        self._name, self._since = name, now


_LOAD = """
import sys
from benchmarks.backfill import load
load(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
"""


def load(home: str, rows: int, server: list[str]) -> None:
    """Make the demo table on a server with these settings, which it has again when the next process starts it."""
    settings = settings_of(home)
    start_tuned_server(embedded_folder(settings), server)
    with Database.from_settings(settings) as database:
        create_demo_table(database, settings, rows, with_index=False)


if __name__ == "__main__":
    main()
