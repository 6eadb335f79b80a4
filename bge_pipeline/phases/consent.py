"""Consent: which steps of a migration nobody takes without being asked, and who has said yes. Every road passes here."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Literal

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ChangedMeanwhile, ConsentRequired
from bge_pipeline.phases.state import MigrationState
from bge_pipeline.settings import Settings, SwapSettings
from bge_pipeline.space import EmbeddingSpace

Step = Literal["first", "next", "forward"]
"""`first`: the first migration of a table; `next`: another one, on a table that is finished; `forward`: the swap of a
migration that somebody rolled back."""


def moment() -> str:
    """Now, in UTC, as ISO 8601 without hyphens and colons, which neither YAML nor PowerShell takes for a date of its own."""
    return f"{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%S.%f')[:-3]}Z"


def step_ahead(state: MigrationState, space: EmbeddingSpace) -> Step | None:
    """The step to agree to before a migration to `space` goes on; None while one is under way, or where it is over."""
    if state.new is not None:
        return "forward" if rolled_back(state.new) is not None else None
    if state.phase == "legacy":
        return "first"
    current = state.current_space
    return "next" if state.phase == "retired" and (current is None or not current.is_same_as(space)) else None


def rolled_back(new: Column | None) -> str | None:
    """When somebody exchanged the columns back, if nobody has gone forward since; `new` is the column being filled."""
    note = new.note if new is not None else None
    return note.rolled_back if note is not None else None


def require_asked(target: TargetTable, asked: Column | None, found: Column | None) -> None:
    """Refuse to act on a column that nobody was asked about: another process put it there while this one waited for its turn.

    Args:
        target: the table.
        asked: the column that was meant before the wait.
        found: the one that would be dropped, or exchanged, now.

    Raises:
        ChangedMeanwhile: it is another.
    """
    if found is not None and (asked is None or asked.number != found.number):
        raise ChangedMeanwhile(
            f"column {found.name!r} of {target} is there since another process was waited for",
            state="nothing was changed",
            next_step="run the same command again if that column is meant",
        )


def has_consent(step: Step | None, state: MigrationState, settings: Settings, space: EmbeddingSpace) -> bool:
    """Whether the settings say yes to the step. A first migration needs no yes."""
    if step == "next":
        return settings.begin_next_migration in (settings.embedding_model, space.model)
    return step != "forward" or settings.forward_after_rollback == rolled_back(state.new)


def with_consent(settings: Settings, state: MigrationState) -> Settings:
    """The settings of somebody who has just said yes to the step that `state` has ahead, and to no later one."""
    if state.phase == "retired":
        return settings.model_copy(update={"begin_next_migration": settings.embedding_model})
    if rolled_back(state.new) is not None:
        return settings.model_copy(update={"forward_after_rollback": rolled_back(state.new)})
    return settings


def require_consent(state: MigrationState, settings: Settings, space: EmbeddingSpace, *, given: bool = False) -> None:
    """Refuse a step that nobody has said yes to.

    Args:
        state: where the table stands.
        settings: among them BEGIN_NEXT_MIGRATION and FORWARD_AFTER_ROLLBACK.
        space: the embedding space that the migration leads to.
        given: whether the caller was told to begin the next migration.

    Raises:
        ConsentRequired: says what would happen, and how each road is told to go on.
    """
    step = step_ahead(state, space)
    if step == "next" and not given and not has_consent(step, state, settings, space):
        raise _next_refused(state, settings, space)
    if step == "forward" and state.new is not None:
        require_forward(state.new, settings, state.table.target)


def require_forward(new: Column, settings: SwapSettings, target: TargetTable) -> None:
    """Refuse to go forward with a column that somebody went back from.

    Raises:
        ConsentRequired: as `require_consent`.
    """
    when = rolled_back(new)
    if when is None or when == settings.forward_after_rollback:
        return
    raise ConsentRequired(
        f"search on {target} was rolled back to the old vectors at {when}, and nobody has said that it shall read those in "
        f"{new.name!r} again",
        state="nothing was changed by this step; search reads the old vectors",
        next_step="to go forward, bge-pipeline migrate at a terminal or with --yes; by Alembic or Dagster with "
        f"FORWARD_AFTER_ROLLBACK={when} (in Dagster's launchpad: resources.settings.config.forward_after_rollback). "
        "To keep the new vectors current meanwhile, bge-pipeline embed; to drop them, bge-pipeline rollback --discard",
    )


def require_confirmation(target: TargetTable, confirm: str) -> None:
    """Refuse an act on the live table whose caller has not typed the table's name.

    Args:
        target: the table that the settings name.
        confirm: `schema.table`, plain or quoted.

    Raises:
        ConsentRequired: says what was expected.
    """
    expected = f"{target.schema}.{target.table}"
    if confirm.strip() in (expected, str(target)):
        return
    raise ConsentRequired(
        f"confirm: expected {expected!r}, the table that this changes, got {confirm!r}",
        state="nothing was changed",
        next_step=f"if that is the table, set confirm to {expected} in the run's config",
    )


def _next_refused(state: MigrationState, settings: Settings, space: EmbeddingSpace) -> ConsentRequired:
    current, model = state.current_space, settings.embedding_model
    back = "set EMBEDDING_MODEL and EMBEDDING_DIMENSIONS back" if current is None else f"set {_variables(current)}"
    return ConsentRequired(
        f"the migration of {state.table.target} is over, and search reads vectors of {current or 'a model not recorded'}. "
        f"The settings name {space}: that would be the next migration, which embeds about {state.table.estimated_rows:,} "
        f"rows anew, {_consequences(settings)}",
        state="nothing was changed",
        next_step="if it is wanted, bge-pipeline plan, then bge-pipeline migrate at a terminal or with --yes; by Alembic or "
        f"Dagster with BEGIN_NEXT_MIGRATION={model} (in Dagster's launchpad: resources.settings.config.begin_next_migration). "
        f"If it is not, {back}; bge-pipeline embed embeds new rows and nothing else",
    )


def _consequences(settings: SwapSettings) -> str:
    index = (
        "drops the index that search uses first (OLD_INDEX=drop)"
        if settings.old_index == "drop"
        else "fills a new column"
    )
    vectors = (
        "drops today's vectors (OLD_EMBEDDING=drop)" if settings.old_embedding == "drop" else "exchanges the columns"
    )
    return f"{index} and {vectors}"


def _variables(space: EmbeddingSpace) -> str:
    return f"EMBEDDING_MODEL={space.model} and EMBEDDING_DIMENSIONS={space.dimensions}"
