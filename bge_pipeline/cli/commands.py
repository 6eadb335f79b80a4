"""The subcommands. Each opens the database, calls one function and prints the result as text or as JSON."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.cli import render
from bge_pipeline.cli.consent import ask_to_migrate, confirm, has_terminal, rollback_warning
from bge_pipeline.cli.stopping import stopping_on_sigterm
from bge_pipeline.cli.wording import demo_is_meant, mean_the_demo, worded
from bge_pipeline.console import backfill_progress, index_progress, stderr
from bge_pipeline.database.connection import Database, embedded_folder
from bge_pipeline.database.pooler import require_session
from bge_pipeline.database.quarantine import release_all
from bge_pipeline.database.target import TargetTable
from bge_pipeline.demo.home import SCHEMA, demo_is_there, demo_settings, names_a_table
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.errors import BgePipelineError, ConfigurationError, PhaseError, Stopped
from bge_pipeline.phases.application_vectors import compare_with_recorded_model
from bge_pipeline.phases.consent import require_consent, rolled_back, with_consent
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import collapse
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.pause import pause, resume
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback, rollback_cost
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.until import Until
from bge_pipeline.search import RerankMode, Retriever, SearchMode, create_text_index
from bge_pipeline.settings import Settings, load_settings, misspelled_names

EPILOG = (
    "Configuration comes from the environment and .env (see .env.example). Exit codes: 0 done, 1 failed or answered no, 2 wrong "
    "usage or configuration, or nobody to ask and no --yes, 3 refused because a check did not hold, 4 database or model "
    "unavailable, 5 table locked, 6 another operator at work on the table, 130 interrupted, 143 ended by SIGTERM, after the "
    "batch in hand."
)

INTERRUPTED = 130
"""What typer turns Ctrl-C into."""

app = typer.Typer(
    name="bge-pipeline",
    help="Change the embedding model behind a live pgvector table: plan, backfill, verify, swap, roll back.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another operator of the table to end, in place of giving up.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

_overrides: dict[str, str] = {}


@app.callback()
def _options(
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Override a setting, e.g. INDEX_METHOD=hnsw."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Work on the demo's table, whatever DATABASE_URL and TARGET_* name.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens in detail.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
) -> None:
    _overrides.clear()
    for assignment in set_ or []:
        name, separator, value = assignment.partition("=")
        if not separator or name.lower() not in Settings.model_fields:
            raise ConfigurationError(f"--set: expected NAME=VALUE with the name of a setting, got {assignment!r}")
        _overrides[name.lower()] = value
    mean_the_demo(demo, elsewhere="database_url" in _overrides)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logger = logging.getLogger("bge_pipeline")
    logger.setLevel(level)
    logger.handlers = [RichHandler(console=stderr, show_path=False, show_time=False, markup=False)]
    logger.propagate = False
    for name, meant in misspelled_names().items():
        logger.warning(".env: %s is no setting and has no effect; %s may be meant", name, meant)


def settings_of_command() -> Settings:
    """Settings with `--set` on top; those of the demo with `--demo`, and where its table is all that there is."""
    if demo_is_meant():
        _note("working on the demo's table")
        others = {name: value for name, value in _overrides.items() if name != "database_url"}
        return demo_settings(others, database_url=_overrides.get("database_url"))
    settings = load_settings(**_overrides)
    if not names_a_table(settings) and not embedded_folder(settings).exists() and demo_is_there(settings):
        _note("neither DATABASE_URL nor TARGET_* is set: working on the demo's table")
        return demo_settings(_overrides)
    return settings


@contextmanager
def opened() -> Iterator[tuple[Database, Settings]]:
    """The configured database, closed at the end."""
    settings = settings_of_command()
    if settings.database_url is None and not embedded_folder(settings).exists():
        if demo_is_meant():
            raise ConfigurationError(f"there is no demo in {settings.home}", next_step="bge-pipeline demo makes it")
        raise ConfigurationError(
            f"DATABASE_URL is not set, and there is no embedded PostgreSQL in {settings.home}",
            state="nothing was made or changed",
            next_step="set DATABASE_URL (the environment or .env), or bge-pipeline demo",
        )
    with Database.from_settings(settings) as database:
        yield database, settings


@app.command("plan")
def plan_command(json: Json = False) -> None:
    """Say what a migration would do: rows, time, disk, memory, obstacles. Changes nothing; exits 3 on obstacles."""
    with opened() as (database, settings):
        require_table(database, settings)
        with open_service(database, settings) as service:
            result = plan(database, settings, service)
    render.print_json(result) if json else render.print_plan(result)
    if result.obstacles:
        raise typer.Exit(PhaseError.exit_code)


@app.command("migrate")
def migrate_command(
    json: Json = False,
    retry_quarantined: Annotated[bool, typer.Option(help="Try the quarantined rows again.")] = False,
    force: Annotated[bool, typer.Option(help="Swap even if the quality gate does not pass (recorded).")] = False,
    until: Annotated[
        str | None,
        typer.Option(metavar="SHARE|ROWS", help="End the backfill, before any swap, when so many rows have a vector."),
    ] = None,
    wait: Wait = False,
    yes: Yes = False,
) -> None:
    """Expand, backfill, verify and swap; resumes from wherever an earlier run stopped.

    --until 50% or --until 20000 goes so far and ends with 0; the same command without it goes on.

    Asks before a migration begins. Without a terminal a first one just goes on; the next one on a table that is
    finished, and going forward after a rollback, want --yes. From cron, run `embed`.
    """
    goal = Until.parse(until) if until is not None else None
    if force:
        _overrides["quality_gate"] = "warn"
    _wait_for_others(wait)
    with stopping_on_sigterm("bge-pipeline migrate resumes") as stop, opened() as (database, settings):
        state = require_table(database, settings)
        agreed = with_consent(settings, state) if yes else settings
        if not has_terminal():
            require_consent(state, agreed, configured_space(agreed))
        require_session(database)
        with open_service(database, settings) as service:
            if has_terminal() and not yes:
                agreed = ask_to_migrate(database, settings, service, state)
            if retry_quarantined and state.phase != "legacy":
                target = TargetTable.from_settings(settings)
                with database.transaction() as connection:
                    release_all(connection, target)
                    if state.companion is not None:
                        release_all(connection, target.companion)
            with backfill_progress() as on_backfill, index_progress() as on_index:
                result = migrate(
                    database, agreed, service, on_backfill=on_backfill, on_index=on_index, until=goal, stop=stop
                )
        status = read_status(database, settings)
    render.print_json(result) if json else render.print_migration(result, status)


@app.command("embed")
def embed_command(
    json: Json = False,
    retry_quarantined: Annotated[bool, typer.Option(help="Try the quarantined rows again.")] = False,
) -> None:
    """Embed what is pending and nothing else, for cron: never begins a migration, swaps or changes the model."""
    with (
        stopping_on_sigterm("bge-pipeline embed goes on") as stop,
        opened() as (database, settings),
        backfill_progress() as on_backfill,
    ):
        result = embed_pending(
            database, settings, retry_quarantined=retry_quarantined, on_progress=on_backfill, stop=stop
        )
    render.print_json(result) if json else render.print_embedding(result)


@app.command("pause")
def pause_command(
    json: Json = False,
    reason: Annotated[str | None, typer.Option(help="Shown to whoever finds the pause.")] = None,
) -> None:
    """Hold every run on the table after the batch it has in hand, on whatever machine, until `resume`."""
    with opened() as (database, settings):
        result = pause(database, settings, reason=reason)
    render.print_json(result) if json else render.print_pause(result)


@app.command("resume")
def resume_command(json: Json = False) -> None:
    """Let the runs on the table go on, whoever paused them."""
    with opened() as (database, settings):
        result = resume(database, settings)
    render.print_json(result) if json else render.print_pause(result)


@app.command("status")
def status_command(json: Json = False) -> None:
    """Say where the migration stands."""
    with opened() as (database, settings):
        result = read_status(database, settings)
        result = replace(result, application_vectors=compare_with_recorded_model(database, settings))
    render.print_json(result) if json else render.print_status(result)


@app.command("rollback")
def rollback_command(
    json: Json = False,
    discard: Annotated[bool, typer.Option(help="Also drop the new column and everything that came with it.")] = False,
    wait: Wait = False,
    yes: Yes = False,
) -> None:
    """Exchange the columns back; before the first swap, or with --discard, drop the new column."""
    _wait_for_others(wait)
    with opened() as (database, settings):
        state = require_table(database, settings)
        facts: dict[str, object] = {}
        already = None if discard else rolled_back(state.new)
        warning = rollback_warning(state, discard=discard)
        if warning is not None:
            confirm(" ".join(filter(None, (rollback_cost(database, settings), warning))), yes=yes)
        elif already is not None:
            stderr.print(f"rolled back at {already} already, nothing was changed; --discard drops the new column")
        if state.phase in ("swapped", "retired"):
            result = rollback(database, settings)
            facts = result.as_metadata()
            for notice in result.notices:
                stderr.print(notice)
        if discard or (state.new is not None and already is None):
            facts["dropped_column"] = collapse(database, settings)
        status = read_status(database, settings)
    render.print_json(facts) if json else render.print_status(status)


@app.command("retire")
def retire_command(
    json: Json = False,
    reclaim: Annotated[
        bool, typer.Option(help="Rewrite the table to give its space back at once; locks it meanwhile (VACUUM FULL).")
    ] = False,
    wait: Wait = False,
    yes: Yes = False,
) -> None:
    """Drop the old column. There is no way back after it."""
    _wait_for_others(wait)
    with opened() as (database, settings):
        state = require_table(database, settings)
        if state.previous is not None:
            confirm(f"This drops {state.previous.name!r} with the old vectors; there is no way back.", yes=yes)
        result = retire(database, settings, reclaim=reclaim)
    render.print_json(result) if json else render.print_retirement(result)


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
    with opened() as (database, settings), open_service(database, settings) as service:
        if rerank == "always" and not settings.enable_reranker:
            raise ConfigurationError("--rerank always needs a reranker", next_step="set ENABLE_RERANKER=true")
        retriever = Retriever(database, settings, service)
        response = retriever.search(query, mode=mode, rerank=rerank, top_k=top_k, explain=explain)
    for warning in response.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    render.print_json(response) if json else render.print_search(response, explain=explain)


@app.command("text-index")
def text_index_command(json: Json = False) -> None:
    """Build the full-text index that makes lexical and hybrid search fast, beside live traffic."""
    with opened() as (database, settings), index_progress() as show:
        result = create_text_index(database, settings, on_progress=show)
    render.print_json(asdict(result)) if json else render.print_facts(result.name, {"built": str(result.built)})


@app.command("alembic", context_settings={"ignore_unknown_options": True})
def alembic_command(
    arguments: Annotated[
        list[str], typer.Argument(help="As after `alembic`: upgrade 005, upgrade head --sql, current.")
    ],
) -> None:
    """Run Alembic on the revisions 004 to 007, wherever they are installed."""
    from bge_pipeline.revisions import run_alembic

    run_alembic(arguments, {name.upper(): value for name, value in _overrides.items()})


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
        _overrides["benchmark_texts"] = str(texts)
    with opened() as (database, settings):
        require_table(database, settings)
        with open_service(database, settings) as service:
            steps = stderr.print if stderr.is_terminal else logging.getLogger("bge_pipeline").info
            report = benchmark(database, settings, service, batch_sizes=batch_size or BATCH_SIZES, on_step=steps)
        written = write_report(report, output or settings.home / "reports")
    render.print_json(report.as_json()) if json else render.print_report(report, written)


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

    settings = demo_settings(_overrides, database_url=database_url)
    if database_url is not None:
        confirm(question_to_user(settings, reset=reset), yes=yes)
    mean_the_demo(True, elsewhere=database_url is not None)
    result = run_demo(settings, rows=rows, reset=reset)
    if json:
        render.print_json(result)


@app.command("dev")
def dev_command(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the Dagster UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start the Dagster UI and daemon on the configured database."""
    from bge_pipeline.orchestration.dev_server import run_dev

    with opened() as (_, settings):
        raise typer.Exit(run_dev(settings, port=port, host=host))


def main() -> None:
    """Run the command; an error of this project is one message and an exit code, not a traceback."""
    try:
        app()
    except Stopped as stopped:
        stderr.print(worded(str(stopped)), markup=False, highlight=False)
        sys.exit(stopped.exit_code)
    except BgePipelineError as error:
        stderr.print(f"error: {worded(str(error))}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except SQLAlchemyError as error:
        stderr.print(f"error: {worded(_database_message(error))}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            stderr.print(worded("interrupted; every committed batch is kept. Next: bge-pipeline migrate resumes"))
        raise


def _database_message(error: SQLAlchemyError) -> str:
    reason = str(getattr(error, "orig", None) or error).strip()
    return f"PostgreSQL refused a statement: {reason}\nNext: bge-pipeline status shows where the migration stands"


def _wait_for_others(wait: bool) -> None:
    if wait:
        _overrides["operator_wait_seconds"] = "inf"


def _note(line: str) -> None:
    stderr.print(line, style="dim", highlight=False, markup=False)
