"""Commands that look and change nothing: what is wrong with the vectors of today, and which model could be the next."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from bge_pipeline.cli import printing
from bge_pipeline.cli.consent import confirm
from bge_pipeline.cli.invocation import Json, Yes, app, opened, writable_folder
from bge_pipeline.console import stderr
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.compare_models import TEXTS, asked_endpoints, compare_models
from bge_pipeline.phases.doctor import SAMPLE_ROWS, examine
from bge_pipeline.quality.judgements import load_judged_queries
from bge_pipeline.report import comparison, diagnosis
from bge_pipeline.report.diagnosis import Grade

_FOUND_WHAT_FAILS = 1


@app.command("doctor", short_help="Say what is wrong with the vectors.")
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
    if html is not None:
        writable_folder(html.parent)
    with opened() as migration:
        found = examine(migration, most_rows=None if everything else SAMPLE_ROWS)
    printing.print_json(found) if json else printing.print_diagnosis(found)
    if html is not None:
        _write(html, diagnosis.as_html(found))
    if fail_on is not None and found.reaches(fail_on):
        raise typer.Exit(_FOUND_WHAT_FAILS)


@app.command("compare", short_help="Measure models on your own texts.")
def compare_command(
    model: Annotated[
        list[str],
        typer.Option(
            help="A candidate, as EMBEDDING_MODEL takes it, or endpoint:NAME@DIMENSIONS, which EMBEDDING_API_URL serves; may be "
            "given several times."
        ),
    ],
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Labelled queries, as EVAL_QUERIES takes them; texts are searched for by their own words without."
        ),
    ] = None,
    texts: Annotated[int, typer.Option(min=2, help="Rows of the table to sample.")] = TEXTS,
    html: Annotated[Path | None, typer.Option(help="Also write the leaderboard to this file, as a page.")] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Measure models on a sample of the table's own texts: quality, speed here, size. Asks before a text leaves the machine."""
    if html is not None:
        writable_folder(html.parent)
    with opened() as migration:
        endpoints = asked_endpoints(migration, model)
        if endpoints:
            host = urlsplit(migration.settings.embedding_api_url).hostname
            sent = f"Up to {texts:,} texts of the table, and queries made of them, are sent to {host}"
            confirm(f"{sent} for {' and for '.join(endpoints)}.", yes=yes)
        judged_in = queries or migration.settings.eval_queries
        judged = load_judged_queries(judged_in) if judged_in is not None else None
        steps = stderr.print if stderr.is_terminal else logging.getLogger("bge_pipeline").info
        found = compare_models(migration, model, judged=judged, texts=texts, may_send=bool(endpoints), on_step=steps)
    printing.print_json(found) if json else printing.print_comparison(found)
    if html is not None:
        _write(html, comparison.as_html(found))


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{path}: expected a file that can be written: {error.strerror or error}",
            state="what was found is on standard output",
        ) from error
    stderr.print(f"written to {path}", markup=False, highlight=False)
