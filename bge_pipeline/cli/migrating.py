"""Commands that go forward: plan, migrate, its phases singly, and embed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from bge_pipeline.cli import printing
from bge_pipeline.cli.consent import ask_to_measure, ask_to_migrate, has_terminal
from bge_pipeline.cli.invocation import Json, RetryQuarantined, Wait, Yes, app, invocation, model_of, opened
from bge_pipeline.cli.printing_plan import print_plan
from bge_pipeline.cli.stopping import stopping_on_sigterm
from bge_pipeline.database.pooler import require_session
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import PhaseError
from bge_pipeline.phase_line import phase_line, working
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.consent import require_consent, with_consent
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.ending import require_whole
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.quarantined import release_quarantined
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import swap
from bge_pipeline.phases.unloaded_model import unloaded_model
from bge_pipeline.phases.until import Until, rows_until

Force = Annotated[bool, typer.Option(help="Swap even if the quality gate does not pass (recorded).")]
SetSearchEffort = Annotated[
    bool,
    typer.Option(
        "--set-search-effort",
        help="Set on the server what plain SQL needs to find as much as the index can (ALTER DATABASE or ROLE ... SET).",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="SHARE|ROWS", help="End the backfill, before any swap, when so many rows have a vector."
    ),
]


@app.command("plan", short_help="Say what a migration would do.")
def plan_command(json: Json = False, yes: Yes = False) -> None:
    """Say what a migration would do: rows, time, disk, memory, obstacles. Changes nothing; exits 3 on obstacles.

    With EMBEDDING_PROVIDER=openai it says tokens and cost without sending anything, and asks before it measures the speed;
    with --yes it measures at once, without a terminal and --yes it does not measure.
    """
    with opened() as migration:
        require_table(migration)
        result = None
        if migration.settings.embedding_provider == "openai":
            result = plan(migration, unloaded_model(migration))
        if result is None or ask_to_measure(result, yes=yes):
            with model_of(migration) as service, working("measuring the model on texts of the table"):
                result = plan(migration, service)
    printing.print_json(result) if json else print_plan(result)
    if result.obstacles:
        raise typer.Exit(PhaseError.exit_code)


@app.command("migrate", short_help="Expand, backfill, verify and swap.")
def migrate_command(
    json: Json = False,
    retry_quarantined: RetryQuarantined = False,
    force: Force = False,
    until: UntilOption = None,
    set_search_effort: SetSearchEffort = False,
    dry_run: Annotated[bool, typer.Option(help="Say what it would do, as `plan` does, and do nothing.")] = False,
    wait: Wait = False,
    yes: Yes = False,
) -> None:
    """Expand, backfill, verify and swap; resumes from wherever an earlier run stopped.

    --until 50% or --until 20000 goes so far and ends with 0; the same command without it goes on.

    Asks before a migration begins. Without a terminal a first one just goes on; the next one on a table that is
    finished, and going forward after a rollback, want --yes. From cron, run `embed`.
    """
    if dry_run:
        plan_command(json=json, yes=yes)
        return
    goal = Until.parse(until) if until is not None else None
    if force:
        invocation().overrides["quality_gate"] = "warn"
    if set_search_effort:
        invocation().overrides["server_search_effort"] = "set"
    invocation().wait_for_others(wait)
    with stopping_on_sigterm("bge-pipeline migrate resumes") as stop, _agreed(yes=yes) as (migration, service):
        if retry_quarantined:
            release_quarantined(migration)
        with phase_line() as line:
            result = migrate(
                migration, service, on_backfill=line.backfill, on_index=line.index, on_step=line.step,
                until=goal, stop=stop,
            )  # fmt: skip
        status = read_status(migration)
    printing.print_json(result) if json else printing.print_migration(result, status)


@app.command("expand", short_help="Step 1 of migrate: add the column.")
def expand_command(json: Json = False, wait: Wait = False, yes: Yes = False) -> None:
    """The first step of migrate alone: add the column and what keeps it true. Asks as migrate does."""
    invocation().wait_for_others(wait)
    with _agreed(yes=yes) as (migration, service), phase_line() as line:
        line.step("expand")
        result = expand(migration, service.space)
        status = read_status(migration)
    printing.print_json(result) if json else printing.print_status(status)


@app.command("backfill", short_help="Step 2: embed what is pending.")
def backfill_command(
    json: Json = False, retry_quarantined: RetryQuarantined = False, until: UntilOption = None
) -> None:
    """The second step of migrate alone: embed what is pending, without a swap. Resumes where it was stopped."""
    goal = Until.parse(until) if until is not None else None
    with stopping_on_sigterm("bge-pipeline backfill resumes") as stop, opened() as migration:
        _ = require_table(migration).filled  # says how to begin, before the model is loaded
        if retry_quarantined:
            release_quarantined(migration)
        with model_of(migration) as service, phase_line() as line:
            rows = rows_until(migration, goal)
            line.step("backfill")
            result = backfill(migration, service.encoder, on_progress=line.backfill, stop=stop, goal_rows=rows)
            require_whole(result, stop, "bge-pipeline backfill resumes")
        status = read_status(migration)
    printing.print_json(result) if json else printing.print_status(status)


@app.command("swap", short_help="Step 3: index, verify, exchange.")
def swap_command(json: Json = False, force: Force = False, wait: Wait = False) -> None:
    """The last step of migrate alone: index the new column, ask the quality gate, exchange the columns."""
    if force:
        invocation().overrides["quality_gate"] = "warn"
    invocation().wait_for_others(wait)
    with opened() as migration:
        _ = require_table(migration).filled
        with model_of(migration) as service, phase_line() as line:
            result = swap(migration, service, on_progress=line.index, on_step=line.step)
        status = read_status(migration)
    printing.print_json(result) if json else printing.print_status(status)


@app.command("embed", short_help="Embed what is pending, from cron.")
def embed_command(
    json: Json = False,
    retry_quarantined: RetryQuarantined = False,
) -> None:
    """Embed what is pending and nothing else, for cron: never begins a migration, swaps or changes the model."""
    with (
        stopping_on_sigterm("bge-pipeline embed goes on") as stop,
        opened() as migration,
        phase_line() as line,
    ):
        result = embed_pending(migration, retry_quarantined=retry_quarantined, on_progress=line.backfill, stop=stop)
    printing.print_json(result) if json else printing.print_embedding(result)


@contextmanager
def _agreed(*, yes: bool) -> Iterator[tuple[Migration, EmbeddingsService]]:
    """The migration, with settings that say yes to the step ahead, and the model; whoever has not agreed yet is asked.

    Raises:
        ConsentRequired: there is nobody to ask.
    """
    with opened() as migration:
        state = require_table(migration)
        agreed = with_consent(migration.settings, state) if yes else migration.settings
        if not has_terminal():
            require_consent(state, agreed, configured_space(agreed))
        require_session(migration.database)
        with model_of(migration) as service:
            if has_terminal() and not yes:
                agreed = ask_to_migrate(migration, service, state)
            yield Migration(migration.database, agreed), service
