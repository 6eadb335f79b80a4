"""`python -m bge_pipeline_tests.chaos`: rounds with new seeds, or one seed again; what `make chaos` runs."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections import Counter
from typing import Annotated

import typer

from bge_pipeline_tests.chaos.rounds import Chaos, Round, temporary_folder
from bge_pipeline_tests.chaos.scenario import Scenario


def main(
    rounds: Annotated[int, typer.Option(help="How many.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Of the first round; the next ones count up.")] = None,
    minutes: Annotated[float, typer.Option(help="Begin no round after so many.")] = float("inf"),
    road: Annotated[str | None, typer.Option(help="command, alembic or dagster, whatever the seed says.")] = None,
) -> None:
    """Play rounds of chaos; exits 1 if anything was wrong in one, and says with which seed it comes again."""
    first = seed if seed is not None else secrets.randbelow(10**6)
    folder = temporary_folder()
    chaos = Chaos(folder)
    played: list[Round] = []
    end = time.monotonic() + minutes * 60
    try:
        for number in range(rounds):
            if time.monotonic() > end:
                break
            played.append(chaos.play(Scenario.from_seed(first + number, road)))
            typer.echo(f"{number + 1}. {played[-1]}")
    finally:
        chaos.close()
    typer.echo(summary(played))
    wrong = [done for done in played if done.wrong]
    if not wrong:
        shutil.rmtree(folder)
        return
    for done in wrong:
        typer.echo(
            f"wrong: make chaos ARGS='--rounds 1 --seed {done.scenario.seed}', said in {folder / str(done.scenario.seed)}"
        )
        for line in done.wrong:
            typer.echo(f"  {line}")
    sys.exit(1)


_NAMES = {
    "kill": "SIGKILL of the worker",
    "end backend": "backend ended, as by pg_terminate_backend",
    "crash": "server stopped at once, and started",
    "freeze": "worker stopped for 2 s (SIGSTOP)",
}


def _places(faults: Counter[tuple[str, str]], kind: str) -> str:
    places = {place: n for (of, place), n in sorted(faults.items()) if of == kind}
    return f"{sum(places.values())} ({', '.join(f'{place} {n}' for place, n in places.items())})"


def summary(played: list[Round]) -> str:
    """The figures of all rounds as a Markdown table."""
    faults: Counter[tuple[str, str]] = Counter()
    roads: Counter[str] = Counter()
    for done in played:
        faults.update(done.faults)
        roads[done.scenario.road] += 1
    figures = {
        "rounds": f"{len(played)} ({', '.join(f'{name} {n}' for name, n in sorted(roads.items()))})",
        "of which two operators": sum(done.scenario.operators == 2 for done in played),
        "of which HNSW, the others IVFFlat": sum(done.scenario.method == "hnsw" for done in played),
        "processes started": sum(done.attempts for done in played),
        **{_NAMES[kind]: _places(faults, kind) for kind in _NAMES},
        "faults whose moment never came": sum(done.missed for done in played),
        "writes committed": sum(done.writes for done in played),
        "searches answered": sum(done.reads for done in played),
        "statements of the application cut off by a crash": sum(done.cut_off for done in played),
        "rows compared at the end": sum(done.rows for done in played),
        **{
            f"longest {what}, {where}": _longest([done for done in played if done.was_frozen is frozen], name)
            for what, name in (("write", "longest_write_seconds"), ("search", "longest_read_seconds"))
            for where, frozen in (("no operator frozen", False), ("an operator frozen for 2 s", True))
        },
        "rounds in which something was wrong": sum(bool(done.wrong) for done in played),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())])


def _longest(played: list[Round], name: str) -> str:
    found = sorted((getattr(done, name), done.scenario.seed) for done in played)
    if not found:
        return "none"
    middle = found[len(found) // 2][0]
    return f"{found[-1][0] * 1e3:,.0f} ms (seed {found[-1][1]}; in the median round {middle * 1e3:.0f} ms)"


if __name__ == "__main__":
    typer.run(main)
