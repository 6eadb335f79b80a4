"""The command that says what is wrong with the vectors of today, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bge_pipeline.cli import render
from bge_pipeline.cli.invocation import Json, app, opened
from bge_pipeline.console import stderr
from bge_pipeline.phases.doctor import SAMPLE_ROWS, examine
from bge_pipeline.report.diagnosis import Grade, as_html

_FOUND_WHAT_FAILS = 1


@app.command("doctor")
def doctor_command(
    everything: Annotated[
        bool, typer.Option("--all", help=f"Read every row; by default some {SAMPLE_ROWS:,} on random pages.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the findings to this file, as a page.")] = None,
    fail_on: Annotated[
        Grade | None, typer.Option(help="End with exit code 1 where a finding is as bad as this, or worse.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is wrong with the vectors that search reads, and what mends it. Changes nothing; works on a replica."""
    with opened() as (database, settings):
        found = examine(database, settings, most_rows=None if everything else SAMPLE_ROWS)
    if html is not None:
        html.write_text(as_html(found), encoding="utf-8")
        stderr.print(f"written to {html}", markup=False, highlight=False)
    render.print_json(found) if json else render.print_diagnosis(found)
    if fail_on is not None and found.reaches(fail_on):
        raise typer.Exit(_FOUND_WHAT_FAILS)
