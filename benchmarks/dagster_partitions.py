"""Ten thousand partitions in Dagster's records: seconds and memory of one tick of each sensor, and of the UI's pages.

Run: python -m benchmarks.dagster_partitions
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil

from benchmarks.dagster_records import finish, launch
from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.orchestration.dagster_home import environment, in_environment, server_urls
from bge_pipeline.orchestration.in_process import keep_connections
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.settings import load_settings

FAILED = 20
SENSORS = ("rerun_failed_partitions", "embed_new_rows", "watch_status", "watch_movement")
PAGES = {
    "partitions of the asset": """{ assetNodes(assetKeys: [{path: ["backfilled_embeddings"]}]) {
      partitionStats { numMaterialized numPartitions numFailed numMaterializing }
      partitionKeyConnection(limit: 100, ascending: false) { results }
      assetPartitionStatuses { ... on DefaultPartitionStatuses {
        materializedPartitions failedPartitions unmaterializedPartitions materializingPartitions } } } }""",
    "first page of the runs": """{ runsFeedOrError(limit: 30, view: ROOTS) { ... on RunsFeedConnection {
      results { id runStatus creationTime tags { key value } } cursor hasMore } } }""",
    "the backfill": """{ partitionBackfillsOrError(limit: 10) { ... on PartitionBackfills { results {
      id status numPartitions partitionStatusCounts { runStatus count } } } } }""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=10_000, help="partitions of the backfill, of one row each")
    parser.add_argument("--tick", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tick:
        print(json.dumps(_tick(arguments.tick)))
        return
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = load_settings(
            bge_pipeline_home=home,
            embedding_model="hashing",
            partition_rows=1,
            metrics_port=None,
            max_partition_attempts=5,
        )
        with Database.from_settings(settings) as database:
            create_demo_table(database, settings, arguments.partitions, with_index=False)
        variables = environment(settings) | server_urls(settings)
        with in_environment(variables), dg.DagsterInstance.get() as instance:
            keep_connections(instance)
            cut_seconds = _expand(instance)
            keys = known_keys(instance, THE_TABLE)
            rows = []
            launch(instance, settings, keys)
            rows += _measured(f"{len(keys):,} runs queued")
            finish(instance, settings, keys, FAILED)
            rows += _measured(f"{FAILED} failed, the others done")
    Measurement(
        "dagster_partitions",
        f"A table cut into {len(keys):,} partitions of one row, in Dagster's records on PostgreSQL: a backfill of all of them "
        f"has just been launched, and the same when it is over and {FAILED} partitions have failed. One tick of each sensor in a "
        "process of its own, as the code server evaluates it; pages of the UI as answers of dagster-webserver to queries like "
        "its own.",
        [
            Results(
                "One tick, or one page",
                ["records", "what", "seconds", "of the CPU, s", "memory more at its peak, MB"],
                rows,
            ),
            Results("The cut", ["partitions", "expand_job, s"], [[f"{len(keys):,}", f"{cut_seconds:.1f}"]]),
        ],
        [
            "The second tick, and the second answer, of each process count: the first one imports what it needs.",
            "Seconds of the CPU are those of the process, without PostgreSQL's; on a busy machine they are what can be compared.",
            "Runs and events are not executed: one is written by Dagster, the others are copies of its rows.",
        ],
    ).publish()


def _measured(records: str) -> Iterator[list[str]]:
    for sensor in SENSORS:
        command = [sys.executable, "-m", "benchmarks.dagster_partitions", "--tick", sensor]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        yield [
            records,
            f"sensor {sensor}: {found['said']}",
            *_shown(found["seconds"], found["cpu"], found["megabytes"]),
        ]
    with _webserver() as ask:
        for page, query in PAGES.items():
            ask(query)
            yield [records, f"UI, {page}", *_shown(*ask(query))]


def _shown(seconds: float, cpu_seconds: float, megabytes: float) -> list[str]:
    return [f"{seconds:.2f}", f"{cpu_seconds:.2f}", f"{megabytes:.0f}"]


def _tick(name: str) -> dict[str, object]:
    from bge_pipeline.definitions import defs

    (sensor,) = (sensor for sensor in defs.sensors or () if sensor.name == name)
    with dg.DagsterInstance.get() as instance:
        keep_connections(instance)

        def once() -> str:
            with dg.build_sensor_context(instance=instance, definitions=defs) as context:
                result = sensor(context)
            if isinstance(result, dg.SkipReason):
                return str(result.skip_message).splitlines()[0]
            return (
                f"{len(result.run_requests or ())} runs requested" if isinstance(result, dg.SensorResult) else "nothing"
            )

        once()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, started, cpu = _peak_megabytes(os.getpid()), time.perf_counter(), time.process_time()
        said = once()
        return {
            "said": _short(said),
            "seconds": time.perf_counter() - started,
            "cpu": time.process_time() - cpu,
            "megabytes": _peak_megabytes(os.getpid()) - before,
        }


def _short(said: str) -> str:
    """What a tick said, without numbers of runs, which differ from one measurement to the next."""
    return said.split(" in run ", maxsplit=1)[0].split(": ", maxsplit=1)[0].split(";", maxsplit=1)[0][:80]


def _peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1_024


def _expand(instance: dg.DagsterInstance) -> float:
    from bge_pipeline.definitions import defs

    started = time.perf_counter()
    result = defs.resolve_job_def("expand_job").execute_in_process(instance=instance)
    assert result.success
    return time.perf_counter() - started


@contextmanager
def _webserver() -> Iterator[Callable[[str], tuple[float, float, float]]]:
    """dagster-webserver on these records; a function that asks it, and gives seconds, those of the CPU, and megabytes more."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("dagster-webserver")),
        "-m",
        "bge_pipeline.definitions",
        "-p",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    server = psutil.Process(process.pid)

    def cpu_seconds() -> float:
        times = server.cpu_times()
        return float(times.user + times.system)

    def ask(query: str) -> tuple[float, float, float]:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        before, started, cpu = _peak_megabytes(process.pid), time.perf_counter(), cpu_seconds()
        body = json.dumps({"query": query}).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, headers)
        with urllib.request.urlopen(asked, timeout=300) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        return time.perf_counter() - started, cpu_seconds() - cpu, _peak_megabytes(process.pid) - before

    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            assert time.monotonic() < deadline, "the webserver did not start"
            time.sleep(0.5)
        yield ask
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
