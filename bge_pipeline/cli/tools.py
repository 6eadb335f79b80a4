"""The other commands: search, the text index, Alembic, the benchmark, the demo and the UI."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import click
import typer
import typer.core

from bge_pipeline.cli import printing, printing_search
from bge_pipeline.cli.consent import confirm
from bge_pipeline.cli.invocation import (
    Json,
    Yes,
    app,
    invocation,
    model_of,
    opened,
    settings_of_command,
    warn_of_password,
    writable_folder,
)
from bge_pipeline.cli.wording import demo_is_meant, mean_table
from bge_pipeline.console import stderr
from bge_pipeline.demo.home import SCHEMA, demo_settings
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phase_line import phase_line
from bge_pipeline.phases.state import require_table
from bge_pipeline.search import RerankMode, Retriever, SearchMode, create_text_index


class _ExplainsToPeople(typer.core.TyperCommand):
    """A command whose `--explain` explains to people, and `--explain=sql` to who reads plans."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, `--explain` with a value."""
        return super().parse_args(ctx, ["--explain=people" if word == "--explain" else word for word in args])


Explain = Literal["people", "sql"]


@app.command("search", short_help="Search the table, ranked.", cls=_ExplainsToPeople)
def search_command(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="Results; RETURN_TOP_K by default.")] = None,
    mode: Annotated[SearchMode, typer.Option(help="By meaning, by words, or by both.")] = "dense",
    rerank: Annotated[
        RerankMode | None,
        typer.Option(help="auto: when the first stage is unsure; RERANK by default. Needs ENABLE_RERANKER."),
    ] = None,
    explain: Annotated[
        Explain | None,
        typer.Option(
            "--explain",
            metavar="[=sql]",
            help="Say where each result comes from, what was searched how, and what took how long; =sql: also the server's plan.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Search the target table and print ranked text with scores."""
    with ExitStack() as stack:
        migration = stack.enter_context(opened())
        if rerank == "always" and not migration.settings.enable_reranker:
            raise ConfigurationError("--rerank always needs a reranker", next_step="set ENABLE_RERANKER=true")
        needs_model = mode != "lexical" or migration.settings.enable_reranker
        service = stack.enter_context(model_of(migration)) if needs_model else None
        retriever = Retriever(migration.database, migration.settings, service)
        response = retriever.search(query, mode=mode, rerank=rerank, top_k=top_k, explain=explain == "sql")
    for warning in response.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    printing.print_json(response) if json else printing_search.print_search(response, explain=explain is not None)


@app.command("text-index", short_help="Build the index for search by words.")
def text_index_command(json: Json = False) -> None:
    """Build the full-text index that makes lexical and hybrid search fast, beside live traffic."""
    with opened() as migration, phase_line() as line:
        line.step("index of words")
        result = create_text_index(migration.database, migration.settings, on_progress=line.index)
    printing.print_json(asdict(result)) if json else printing.print_facts(result.name, {"built": str(result.built)})


@app.command("alembic", short_help="Run the revisions 004 to 007.", context_settings={"ignore_unknown_options": True})
def alembic_command(
    arguments: Annotated[
        list[str], typer.Argument(help="As after `alembic`: upgrade 005, upgrade head --sql, current.")
    ],
) -> None:
    """Run Alembic on the revisions 004 to 007, wherever they are installed; on the configured table, never the demo's."""
    from bge_pipeline.revisions import reads_a_database, run_alembic

    if demo_is_meant() or (reads_a_database(arguments) and settings_of_command().target_schema == SCHEMA):
        raise ConfigurationError(
            "bge-pipeline alembic: expected a table that DATABASE_URL and TARGET_* name, got the demo's",
            state="nothing was made or changed",
            next_step="bge-pipeline --demo expand, backfill and swap are the same phases on the demo's table",
        )
    run_alembic(arguments, {name.upper(): value for name, value in invocation().overrides.items()})


@app.command("benchmark", short_help="Measure, and write a report.")
def benchmark_command(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; reports/ in the data folder by default.")
    ] = None,
    texts: Annotated[int | None, typer.Option(min=1, help="Texts to encode; BENCHMARK_TEXTS by default.")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size to try; may be given several times.")
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Measure encoding, search, storage and quality, and write a report as HTML, Markdown and JSON."""
    from bge_pipeline.phases.benchmark import BATCH_SIZES, MOST_SENT_TEXTS, benchmark
    from bge_pipeline.report.pages import write_report

    if texts is not None:
        invocation().overrides["benchmark_texts"] = str(texts)
    with opened() as migration:
        state = require_table(migration)
        if state.phase == "legacy" and migration.settings.embedding_provider == "openai":
            host = urlsplit(migration.settings.embedding_api_url).hostname
            confirm(
                f"Up to {MOST_SENT_TEXTS} texts of the table, and queries made of them, are sent to {host}.", yes=yes
            )
        folder = writable_folder(output or migration.settings.home / "reports")
        with model_of(migration) as service:
            steps = stderr.print if stderr.is_terminal else logging.getLogger("bge_pipeline").info
            report = benchmark(migration, service, batch_sizes=batch_size or BATCH_SIZES, on_step=steps)
        written = write_report(report, folder)
    files = {name: str(path) for name, path in asdict(written).items()}
    printing.print_json(report.as_json() | {"files": files}) if json else printing.print_report(report, written)


@app.command("demo", short_help="Migrate and search a made-up table.")
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
    """Make a table with 1536-dimensional vectors, migrate it through Dagster and search it before and after.

    With EMBEDDING_PROVIDER=openai it says how many texts are sent where, and asks.
    """
    from bge_pipeline.cli.demo import question_to_user, run_demo

    settings = demo_settings(invocation().overrides, database_url=database_url)
    if database_url is not None:
        warn_of_password(database_url)
    if question := question_to_user(settings, rows=rows, reset=reset):
        confirm(question, yes=yes)
    mean_table(demo=True, elsewhere=database_url is not None)
    result = run_demo(settings, rows=rows, reset=reset, is_shown=not json)
    if json:
        printing.print_json(result)


@app.command("dev", short_help="Start the Dagster UI.")
def dev_command(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the Dagster UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start the Dagster UI and daemon on the configured database."""
    from bge_pipeline.orchestration.dev_server import run_dev

    settings = settings_of_command()
    if not settings.bge_pipeline_tables:
        with opened() as migration:
            settings = migration.settings
    elif invocation().env_file != Path(".env"):
        raise ConfigurationError(
            f"--env-file {invocation().env_file}: BGE_PIPELINE_TABLES={settings.bge_pipeline_tables} is set, whose tables this "
            "command serves",
            next_step="bge-pipeline dev without --env-file; or with it and --set BGE_PIPELINE_TABLES=",
        )
    raise typer.Exit(run_dev(settings, port=port, host=host))
