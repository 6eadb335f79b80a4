"""A table in use while it is migrated: what readers and writers of the application feel, by this project and by a peer.

An application searches every 20 ms and writes every 50 ms. The tools take turns on copies of one table, by the old index's
kind and the table's size. Nothing is embedded by a network: both tools hash words, so that what is measured is the table.

Run: python -m benchmarks.live --rows 20000 200000 --old-index ivfflat hnsw --vecshift ~/.cache/vecshift/bin/vecshift
The peer lives in an environment of its own:
     python -m venv ~/.cache/vecshift && ~/.cache/vecshift/bin/pip install vecshift==0.4.0
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.engine import URL

from benchmarks.harness import Measurement, Results
from benchmarks.live_application import Application, Latencies
from benchmarks.live_picture import draw
from benchmarks.live_table import Clone, Sizes, make_template
from benchmarks.live_tools import PhaseWatch, Tool, busy, nothing, ours, vecshift
from benchmarks.tuned_server import add_server_argument, shown_settings, start_tuned_server
from bge_pipeline.database.connection import normalise_url

WARM_UP_SECONDS = 30.0
"""A copy of the table begins with nothing of it in memory, and its first searches say nothing of later ones."""
BEFORE_SECONDS = 30.0
AFTER_SECONDS = 10.0


@dataclass
class Race:
    """One tool on one table; latencies in milliseconds by what was going on, `before`, `during` and `after` the swap.

    Attributes:
        marks: seconds since the tool began at which each phase did.
        timeline: for `searches` and `writes`, a list of [second, p50, p95, longest].
        error: the end of what the tool said, where it failed.
    """

    tool: str
    old_index: str
    rows: int
    seconds: float
    backfill_seconds: float | None
    hot_share: float | None
    searches: dict[str, list[float]]
    writes: dict[str, list[float]]
    sizes_before: Sizes
    sizes_after: Sizes
    marks: dict[str, float]
    timeline: dict[str, list[list[float]]]
    failures: dict[str, int] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class LiveMeasurement(Measurement):
    """A measurement with the course of each race beside its tables."""

    races: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    arguments = _arguments()
    tools = [ours("keep", arguments.set), ours("drop", arguments.set)]
    tools += [ours("keep", [*arguments.set, setting], also=setting) for setting in arguments.also]
    if arguments.alone is not None:
        tools += [nothing(arguments.alone), busy(arguments.alone)]
    if arguments.vecshift is not None:
        tools.append(vecshift(arguments.vecshift))
    tools = [tool for tool in tools if not arguments.tools or tool.name in arguments.tools]
    races: list[Race] = []
    with tempfile.TemporaryDirectory(prefix="bge-live-", ignore_cleanup_errors=True) as folder:
        server = (
            normalise_url(arguments.database_url)
            if arguments.database_url
            else start_tuned_server(Path(folder) / "postgres", arguments.server)
        )
        memory = shown_settings(server)
        for old_index in arguments.old_index:
            for rows in arguments.rows:
                with make_template(server, rows, old_index, Path(folder)) as template:
                    for number in range(arguments.rounds):
                        turn = tools[number % len(tools) :] + tools[: number % len(tools)]
                        for tool in turn:
                            race = run_race(server, template, tool, rows, old_index, Path(folder))
                            print(_line(race), flush=True)
                            races.append(race)
    publish(races, arguments.name, arguments.rounds, arguments.pictures, memory)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000], help="sizes of the table")
    parser.add_argument("--old-index", nargs="+", default=["ivfflat", "hnsw"], choices=["ivfflat", "hnsw"])
    parser.add_argument("--rounds", type=int, default=1, help="turns of each tool; samples of all turns are pooled")
    parser.add_argument("--vecshift", type=Path, help="path of the peer's command; without it the peer is left out")
    parser.add_argument(
        "--alone",
        type=float,
        metavar="SECONDS",
        help="also leave the application alone for as long, and beside a process that only computes",
    )
    parser.add_argument("--tools", nargs="+", help="names of the tools to run, as the tables have them; all by default")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting for ours")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="ours once more, with that setting beside the others",
    )
    parser.add_argument("--database-url", help="a server with pgvector; an embedded one by default")
    add_server_argument(parser)
    parser.add_argument("--name", default="live", help="of the results, and how the pictures' names begin")
    parser.add_argument(
        "--pictures", type=Path, default=Path(__file__).parent.parent / "docs" / "images", help="folder of the pictures"
    )
    return parser.parse_args()


def run_race(server: URL, template: str, tool: Tool, rows: int, old_index: str, folder: Path) -> Race:
    """One tool on a fresh copy of the table, with the application at work from before to after the tool."""
    with Clone(server, template) as clone, tempfile.TemporaryDirectory(dir=folder) as home:
        sizes_before, updates_before = clone.sizes(), clone.updates()
        application, watch = Application(clone.dsn, rows), PhaseWatch(clone.dsn)
        stop = threading.Event()
        threads = [threading.Thread(target=work, args=(stop,)) for work in (*application.work, watch.run)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(WARM_UP_SECONDS)
            application.forget()
            time.sleep(BEFORE_SECONDS)
            began = time.time()
            error = tool.run(clone.dsn, Path(home))
            ended = time.time()
            time.sleep(AFTER_SECONDS + 1.0)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        marks = {name: at - began for name, at in watch.marks.items()}
        swapped = watch.marks.get("swap", ended)
        spans = {"before": (0.0, began), "during": (began, swapped), "after": (swapped, swapped + AFTER_SECONDS)}
        total, hot = (now - then for now, then in zip(clone.updates(), updates_before, strict=True))
        return Race(
            tool=tool.name,
            old_index=old_index,
            rows=rows,
            seconds=ended - began,
            backfill_seconds=marks["index"] - marks["backfill"] if {"index", "backfill"} <= marks.keys() else None,
            hot_share=hot / total if total else None,
            searches={name: application.searches.between(*span) for name, span in spans.items()},
            writes={name: application.writes.between(*span) for name, span in spans.items()},
            sizes_before=sizes_before,
            sizes_after=clone.sizes(),
            marks=marks,
            timeline={
                "searches": application.searches.by_second(began),
                "writes": application.writes.by_second(began),
            },
            failures=application.failures,
            error=error,
        )


def publish(races: Sequence[Race], name: str, rounds: int, pictures: Path, memory: str) -> None:
    """Tables by old index and size, the course of each race in the JSON, and a picture of each comparison."""
    tables, notes = [], []
    groups = list(dict.fromkeys((race.old_index, race.rows) for race in races))
    for old_index, rows in groups:
        group = [race for race in races if (race.old_index, race.rows) == (old_index, rows)]
        of_tool = {tool: [race for race in group if race.tool == tool] for tool in dict.fromkeys(r.tool for r in group)}
        title = f"{rows:,} rows, old index {old_index}"
        tables += [
            Results(f"{title}: speed and size", _SPEED, [_speed(tool, found) for tool, found in of_tool.items()]),
            *(
                Results(
                    f"{title}: {kind}, milliseconds",
                    _LATENCY,
                    [row for tool, found in of_tool.items() for row in _latency(tool, found, kind)],
                )
                for kind in ("searches", "writes")
            ),
        ]
        path = draw(group, pictures / f"{name}-{old_index}-{rows}.png")
        notes.append(f"{title}: latency over time with the phases marked in {path.name}.")
    notes += [
        f"{race.tool}, {race.rows:,} rows, {race.old_index}: FAILED: {race.error}" for race in races if race.error
    ]
    notes.append(
        "Reader and writer each wait for their own statement: a long wait is one sample, so look at the longest too."
    )
    notes.append(f"The server has {memory}.")
    notes.append(f"Load of the machine at the end: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores.")
    LiveMeasurement(
        name,
        "A search every 20 ms and a write every 50 ms while a tool migrates 1536-dimensional vectors to 384 with a new HNSW "
        f"index; no network embeds anything. {rounds} turn(s) of each tool, on copies of one table, whose application had been "
        f"at work for {WARM_UP_SECONDS:.0f} s before anything was noted. `during` ends with the "
        f"exchange of the columns, `after` is {AFTER_SECONDS:.0f} s from it.",
        tables,
        notes,
        races=[_course(race) for race in races],
    ).publish()


_SPEED = ["", "rows/s, all", "rows/s, backfill", "HOT updates", "heap MB", "out of line MB", "indexes MB"]
_LATENCY = ["", "when", "p50", "p95", "p99", "longest", "p95 / before", "p99 / before", "samples"]


def _speed(tool: str, races: Sequence[Race]) -> list[str]:
    def median(values: Sequence[float | None], form: str) -> str:
        found = [value for value in values if value is not None]
        return format(statistics.median(found), form) if found else "-"

    def size(part: str) -> str:
        before, after = (
            statistics.median(getattr(sizes, part) for sizes in found) / 1e6
            for found in ([race.sizes_before for race in races], [race.sizes_after for race in races])
        )
        return f"{before:,.0f} -> {after:,.0f}"

    return [
        tool,
        median(
            [race.rows / race.seconds if "swap" in race.marks and not race.error else None for race in races], ",.0f"
        ),
        median([race.rows / race.backfill_seconds if race.backfill_seconds else None for race in races], ",.0f"),
        median([race.hot_share for race in races], ".0%"),
        *(size(part) for part in ("heap_bytes", "toast_bytes", "index_bytes")),
    ]


def _latency(tool: str, races: Sequence[Race], kind: str) -> list[list[str]]:
    pooled = {
        when: np.array([value for race in races for value in getattr(race, kind)[when]])
        for when in ("before", "during", "after")
    }
    before = np.percentile(pooled["before"], [95, 99]) if len(pooled["before"]) else np.array([np.nan, np.nan])
    rows = []
    for when, values in pooled.items():
        if not len(values):
            rows.append([tool, when, *["-"] * 6, "0"])
            continue
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        figures = [f"{value:,.1f}" for value in (p50, p95, p99, values.max())]
        ratios = [f"{ratio:.2f}" for ratio in np.array([p95, p99]) / before]
        rows.append([tool, when, *figures, *ratios, f"{len(values):,}"])
    return rows


def _course(race: Race) -> dict[str, Any]:
    """What the JSON keeps of a race: its figures by second, without each single latency."""
    kept = asdict(race)
    for kind in ("searches", "writes"):
        kept[kind] = {when: Latencies.summary(values) for when, values in kept[kind].items()}
    return kept


def _line(race: Race) -> str:
    if race.error:
        return f"{race.tool}, {race.rows:,} rows, {race.old_index}: FAILED: {race.error}"
    rate = f"{race.rows / race.seconds:,.0f} rows/s" if "swap" in race.marks else f"{race.seconds:,.0f} s"
    marks = {name: f"{at:.1f} s" for name, at in race.marks.items()}
    return f"{race.tool}, {race.rows:,} rows, {race.old_index}: {rate}, {marks}, failures {race.failures}"


if __name__ == "__main__":
    main()
