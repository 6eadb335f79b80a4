"""Commands about a migration under way: status, pause and resume, quarantine, the way back and the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from bge_pipeline.cli import printing
from bge_pipeline.cli.consent import confirm, retire_warning, rollback_warning
from bge_pipeline.cli.invocation import Json, Wait, Yes, app, invocation, opened
from bge_pipeline.cli.stopping import stopping_on_sigterm
from bge_pipeline.cli.wording import worded
from bge_pipeline.console import stderr
from bge_pipeline.phase_line import phase_line
from bge_pipeline.phases.application_vectors import compare_with_recorded_model
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.consent import rolled_back
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.pause import pause, resume
from bge_pipeline.phases.quarantined import Quarantined, read_quarantined, release_quarantined
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback, rollback_cost
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status

quarantine = typer.Typer(
    help="Rows that cannot be embedded: list them, try them again, or let the next run try them.",
    short_help="See rows that cannot be embedded.",
    no_args_is_help=True,
)
app.add_typer(quarantine, name="quarantine")

Ids = Annotated[
    list[str] | None, typer.Argument(help="Ids of rows, as `list` shows them; all in quarantine when none is given.")
]


@app.command("pause", short_help="Hold every run on the table.")
def pause_command(
    json: Json = False,
    reason: Annotated[str | None, typer.Option(help="Shown to whoever finds the pause.")] = None,
) -> None:
    """Hold every run on the table after the batch it has in hand, on whatever machine, until `resume`."""
    with opened() as migration:
        result = pause(migration, reason=reason)
    printing.print_json(result) if json else printing.print_pause(result)


@app.command("resume", short_help="Let the runs on the table go on.")
def resume_command(json: Json = False) -> None:
    """Let the runs on the table go on, whoever paused them."""
    with opened() as migration:
        result = resume(migration)
    printing.print_json(result) if json else printing.print_pause(result)


@app.command("status", short_help="Say where the migration stands.")
def status_command(json: Json = False) -> None:
    """Say where the migration stands."""
    with opened() as migration:
        result = read_status(migration)
        result = replace(result, application_vectors=compare_with_recorded_model(migration))
    told = result.as_metadata() | {"next_step": worded(result.next_step)}
    printing.print_json(told) if json else printing.print_status(result)


@app.command("rollback", short_help="Search the old vectors again.")
def rollback_command(
    json: Json = False,
    discard: Annotated[bool, typer.Option(help="Also drop the new column and everything that came with it.")] = False,
    wait: Wait = False,
    yes: Yes = False,
) -> None:
    """Exchange the columns back; before the first swap, or with --discard, drop the new column."""
    invocation().wait_for_others(wait)
    with opened() as migration:
        state = require_table(migration)
        facts: dict[str, object] = {}
        already = None if discard else rolled_back(state.new)
        warning = rollback_warning(state, discard=discard)
        if warning is not None:
            cost = None if yes else rollback_cost(migration)
            confirm(" ".join(filter(None, (cost, warning))), yes=yes)
        elif already is not None:
            stderr.print(f"rolled back at {already} already, nothing was changed; --discard drops the new column")
        with phase_line() as line:
            if state.phase in ("swapped", "retired"):
                result = rollback(migration, on_progress=line.index, on_step=line.step, seen=state)
                facts = result.as_metadata()
                for notice in result.notices:
                    stderr.print(notice)
            if discard or (state.new is not None and already is None):
                # Of a rollback the column that was asked about is the new one again.
                seen = require_table(migration) if facts else state
                facts["dropped_column"] = collapse(migration, on_progress=line.index, on_step=line.step, seen=seen)
        status = read_status(migration)
    printing.print_json(facts) if json else printing.print_status(status)


@app.command("retire", short_help="Drop the old vectors, for good.")
def retire_command(
    json: Json = False,
    reclaim: Annotated[
        bool, typer.Option(help="Rewrite the table to give its space back at once; locks it meanwhile (VACUUM FULL).")
    ] = False,
    wait: Wait = False,
    yes: Yes = False,
) -> None:
    """Drop the old column. There is no way back after it."""
    invocation().wait_for_others(wait)
    with opened() as migration:
        state = require_table(migration)
        warning = retire_warning(state, reclaim=reclaim)
        if warning is not None:
            confirm(warning, yes=yes)
        result = retire(migration, reclaim=reclaim, seen=state)
    printing.print_json(result) if json else printing.print_retirement(result)


@quarantine.command("list")
def quarantine_list(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Latest rows to show.")] = 20, json: Json = False
) -> None:
    """Show the rows that could not be embedded, the latest first, and why."""
    with opened() as migration:
        found = read_quarantined(migration, limit)
    printing.print_json(found) if json else printing.print_quarantined(found)


@quarantine.command("retry")
def quarantine_retry(ids: Ids = None, json: Json = False) -> None:
    """Embed them again now, with the model of the settings; those that fail again are put back."""
    with (
        stopping_on_sigterm("bge-pipeline quarantine retry") as stop,
        opened() as migration,
        phase_line() as line,
    ):
        released = release_quarantined(migration, ids)
        result = embed_pending(migration, on_progress=line.backfill, stop=stop) if released else None
        found = read_quarantined(migration)
    if json:
        printing.print_json(
            {"released": released, "left": found.rows} | ({"embedded": result.as_metadata()} if result else {})
        )
    else:
        stderr.print(f"{released:,} rows tried again")
        printing.print_quarantined(found)


@quarantine.command("drop")
def quarantine_drop(ids: Ids = None, json: Json = False, yes: Yes = False) -> None:
    """Forget that they failed: they are pending again, and the next run tries them."""
    with opened() as migration:
        found: Quarantined = read_quarantined(migration)
        if found.rows:
            confirm(f"{len(ids) if ids else found.rows:,} rows become pending again, which a swap waits for.", yes=yes)
        released = release_quarantined(migration, ids)
        found = read_quarantined(migration)
    printing.print_json({"released": released, "left": found.rows}) if json else printing.print_quarantined(found)
