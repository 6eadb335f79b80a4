"""Questions: what a command asks at a terminal before something begins, goes forward, goes back or is destroyed."""

from __future__ import annotations

import sys

import typer

from bge_pipeline.cli.printing import megabytes, print_facts
from bge_pipeline.cli.printing_plan import told_time
from bge_pipeline.console import inert, stderr
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConsentRequired
from bge_pipeline.phases.consent import Step, has_consent, rolled_back, step_ahead, with_consent
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import Plan, plan
from bge_pipeline.phases.plan_rates import SPEED_SAMPLE_ROWS
from bge_pipeline.phases.state import MigrationState
from bge_pipeline.phases.unloaded_model import unloaded_model
from bge_pipeline.settings import Settings

_QUESTIONS: dict[Step, str] = {
    "first": "This begins the migration of a live table.",
    "next": "The last migration is over: this begins another one, which moves search to another model.",
    "forward": "The columns were exchanged back: this goes forward again, to the vectors that somebody went back from.",
}


def has_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def confirm(warning: str, *, yes: bool) -> None:
    """Ask whether to go on; without a terminal, `--yes` has to have said so.

    Raises:
        ConsentRequired: there is nobody to ask.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not has_terminal():
        raise ConsentRequired(warning, state="nothing was changed", next_step="the same command with --yes")
    typer.confirm(inert(f"{warning} Go on?"), abort=True, err=True)


def ask_to_migrate(migration: Migration, service: EmbeddingsService, state: MigrationState) -> Settings:
    """Show what the step ahead would do and ask; returns the settings with the consent in them.

    Nothing is asked where a migration is under way already or the settings say yes.

    Raises:
        typer.Abort: the answer was no.
    """
    settings = migration.settings
    step = step_ahead(state, service.space)
    if step is None or (step != "first" and has_consent(step, state, settings, service.space)):
        return settings
    is_sent = settings.embedding_provider == "openai"
    _show(plan(migration, unloaded_model(migration) if is_sent else service), str(migration.database))
    confirm(_QUESTIONS[step], yes=False)
    return with_consent(settings, state)


def ask_to_measure(unmeasured: Plan, *, yes: bool) -> bool:
    """Whether the speed of an endpoint may be measured, which sends it texts; not where there is nobody to ask."""
    if yes or not has_terminal():
        return yes
    rows = min(SPEED_SAMPLE_ROWS, unmeasured.tokens.sampled_rows)
    question = (
        f"All pending rows together would be {unmeasured.endpoint}. Nothing was sent yet. To measure the speed, {rows} texts of "
        f"{unmeasured.table} are sent, about {rows * unmeasured.tokens.mean:,.0f} tokens. Measure it?"
    )
    return typer.confirm(inert(question), err=True)


def rollback_warning(state: MigrationState, *, discard: bool) -> str | None:
    """What `rollback` would do to the table, None where it does nothing."""
    drops = "drops the new column with the vectors in it"
    if state.previous is not None:
        back = f"exchanges the columns of the live table: search reads the old vectors in {state.previous.name!r} again"
        return f"This {back}, and {drops}." if discard else f"This {back}; the new ones are kept."
    if state.new is None or (rolled_back(state.new) is not None and not discard):
        return None
    return f"This {drops}."


def retire_warning(state: MigrationState, *, reclaim: bool) -> str | None:
    """What `retire` would do to the table, None where it does nothing or is refused."""
    warnings = []
    if state.previous is not None:
        warnings.append(f"This drops {state.previous.name!r} with the old vectors; there is no way back.")
    if reclaim and state.phase in ("swapped", "retired"):
        warnings.append(f"This locks readers and writers out of {state.table.target} while it is rewritten.")
    return " ".join(warnings) or None


def _show(plan: Plan, database: str) -> None:
    """The essentials of a plan, where the question is asked."""
    print_facts(
        f"{plan.table}: {plan.phase}",
        {
            "database": database,
            "from": f"{plan.old_model or 'model not recorded'}, {plan.old_dimensions} dimensions",
            "to": f"{plan.model}, {plan.new_dimensions} dimensions",
            "rows": f"{plan.rows:,}, of which {plan.pending:,} are to be embedded",
            "sent": str(plan.endpoint) if plan.endpoint else None,
            "backfill": told_time(plan),
            "disk": f"{megabytes(plan.disk_bytes)} more until retired",
            "dropped": "; ".join(plan.drops) or "nothing",
            "obstacles": "; ".join(plan.obstacles) or None,
            "more": "bge-pipeline plan",
        },
        console=stderr,
    )
