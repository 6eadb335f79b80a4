"""The command that shows what questions find with the old and with the new vectors."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from bge_pipeline.cli import printing
from bge_pipeline.cli.invocation import Json, app, invocation, model_of, opened

if TYPE_CHECKING:
    from bge_pipeline.quality.side_by_side import Comparison, Hit, SideBySide

_MOVED = {"gone": "red", "new": "green", "same": "dim"}


@app.command("compare-search", short_help="Show what is found, old beside new.")
def compare_search_command(
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to look for; those of COMPARE_QUERIES, QUERY_LOG or EVAL_QUERIES when none is given."
        ),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="A file with a question a line, in place of arguments.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Results of each.")] = 10,
    json: Json = False,
) -> None:
    """Show what questions find with the old vectors and with the new ones, side by side; changes nothing."""
    from bge_pipeline.phases.compare_search import compare_search

    if queries is not None:
        invocation().overrides["compare_queries"] = str(queries.resolve())
    with opened() as migration, model_of(migration) as service:
        found = compare_search(migration, service, questions or (), results=top_k)
    printing.print_json(found) if json else _print_comparison(found)


def _print_comparison(found: Comparison) -> None:
    printing.print_facts(found.table, {"old": found.old, "new": found.new})
    for pair in found.pairs:
        printing.stdout.print()
        printing.stdout.print(Text(pair.query, "bold"), Text(pair.summary(), "dim"), sep="\n")
        printing.stdout.print(_beside(pair))
    printing.stdout.print()
    printing.stdout.print(Text(found.summary()))


def _beside(pair: SideBySide) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=False)
    table.add_column("", justify="right", style="bold")
    table.add_column("old", overflow="fold", ratio=1)
    table.add_column("new", overflow="fold", ratio=1)
    for rank, (old, new) in enumerate(zip_longest(pair.old, pair.new), start=1):
        table.add_row(str(rank), _hit(old, rank, "gone", "to"), _hit(new, rank, "new", "from"))
    return table


def _hit(hit: Hit | None, rank: int, alone: str, direction: str) -> Text:
    if hit is None:
        return Text("")
    moved = alone if hit.other_rank is None else "same" if hit.other_rank == rank else f"{direction} {hit.other_rank}"
    line = " ".join(hit.text.split())
    return Text.assemble((f"[{hit.row_id}] ", "dim"), line[:120], (f" ({moved})", _MOVED.get(moved, "yellow")))
