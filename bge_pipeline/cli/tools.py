"""The other commands: search, the text index, Alembic, the benchmark, the demo and the UI."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bge_pipeline.cli import printing
from bge_pipeline.cli.consent import confirm
from bge_pipeline.cli.invocation import Json, Yes, app, invocation, opened
from bge_pipeline.cli.wording import mean_the_demo
from bge_pipeline.console import index_progress, stderr
from bge_pipeline.demo.home import SCHEMA, demo_settings
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.state import require_table
from bge_pipeline.search import RerankMode, Retriever, SearchMode, create_text_index


@app.command("search")
def search_command(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="Results; RETURN_TOP_K by default.")] = None,
    mode: Annotated[SearchMode, typer.Option(help="By meaning, by words, or by both.")] = "dense",
    rerank: Annotated[
        RerankMode | None,
        typer.Option(help="auto: when the first stage is unsure; RERANK by default. Needs ENABLE_RERANKER."),
    ] = None,
    explain: Annotated[bool, typer.Option(help="Show where each result comes from and what took how long.")] = False,
    json: Json = False,
) -> None:
    """Search the target table and print ranked text with scores."""
    with opened() as migration, open_service(migration) as service:
        if rerank == "always" and not migration.settings.enable_reranker:
            raise ConfigurationError("--rerank always needs a reranker", next_step="set ENABLE_RERANKER=true")
        retriever = Retriever(migration.database, migration.settings, service)
        response = retriever.search(query, mode=mode, rerank=rerank, top_k=top_k, explain=explain)
    for warning in response.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    printing.print_json(response) if json else printing.print_search(response, explain=explain)


@app.command("text-index")
def text_index_command(json: Json = False) -> None:
    """Build the full-text index that makes lexical and hybrid search fast, beside live traffic."""
    with opened() as migration, index_progress() as show:
        result = create_text_index(migration.database, migration.settings, on_progress=show)
    printing.print_json(asdict(result)) if json else printing.print_facts(result.name, {"built": str(result.built)})


@app.command("alembic", context_settings={"ignore_unknown_options": True})
def alembic_command(
    arguments: Annotated[
        list[str], typer.Argument(help="As after `alembic`: upgrade 005, upgrade head --sql, current.")
    ],
) -> None:
    """Run Alembic on the revisions 004 to 007, wherever they are installed."""
    from bge_pipeline.revisions import run_alembic

    run_alembic(arguments, {name.upper(): value for name, value in invocation().overrides.items()})


@app.command("benchmark")
def benchmark_command(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; reports/ in the data folder by default.")
    ] = None,
    texts: Annotated[int | None, typer.Option(min=1, help="Texts to encode; BENCHMARK_TEXTS by default.")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size to try; may be given several times.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure encoding, search, storage and quality, and write a report as HTML, Markdown and JSON."""
    from bge_pipeline.phases.benchmark import BATCH_SIZES, benchmark
    from bge_pipeline.report.pages import write_report

    if texts is not None:
        invocation().overrides["benchmark_texts"] = str(texts)
    with opened() as migration:
        require_table(migration)
        with open_service(migration) as service:
            steps = stderr.print if stderr.is_terminal else logging.getLogger("bge_pipeline").info
            report = benchmark(migration, service, batch_sizes=batch_size or BATCH_SIZES, on_step=steps)
        written = write_report(report, output or migration.settings.home / "reports")
    printing.print_json(report.as_json()) if json else printing.print_report(report, written)


@app.command("demo")
def demo_command(
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of the demo table; the whole corpus by default.")
    ] = None,
    reset: Annotated[bool, typer.Option(help="Drop the tables of an earlier demo first, and nothing else.")] = False,
    database_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Work in the schema {SCHEMA} of this database, after asking; by default on an embedded PostgreSQL of "
            "the demo's own. DATABASE_URL is not read.",
        ),
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Make a table with 1536-dimensional vectors, migrate it through Dagster and search it before and after."""
    from bge_pipeline.cli.demo import question_to_user, run_demo

    settings = demo_settings(invocation().overrides, database_url=database_url)
    if database_url is not None:
        confirm(question_to_user(settings, reset=reset), yes=yes)
    mean_the_demo(True, elsewhere=database_url is not None)
    result = run_demo(settings, rows=rows, reset=reset)
    if json:
        printing.print_json(result)


@app.command("dev")
def dev_command(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the Dagster UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start the Dagster UI and daemon on the configured database."""
    from bge_pipeline.orchestration.dev_server import run_dev

    with opened() as migration:
        raise typer.Exit(run_dev(migration.settings, port=port, host=host))
