"""What must hold before the columns are exchanged: looked at beforehand, and again under the locks."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.dependents import find_bound
from bge_pipeline.database.functions import find_functions
from bge_pipeline.database.indexes import indexes_on
from bge_pipeline.database.pending import count_pending, has_more_pending_than
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.consent import require_forward
from bge_pipeline.phases.function_words import told_unfit
from bge_pipeline.phases.last_rows import StillPending
from bge_pipeline.phases.pending_index import rows_that_are_few
from bge_pipeline.phases.state import MigrationState, require_space
from bge_pipeline.settings import SwapSettings
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)


def may_leave_dependents(settings: SwapSettings) -> bool:
    """Whether what depends on the old column may stay with it: wanted, and the column is kept."""
    return settings.dependents == "ignore" and settings.old_embedding == "keep"


def check_dependents(connection: Connection, settings: SwapSettings, state: MigrationState) -> None:
    """Refuse where something would keep reading the old vectors, unless that is wanted."""
    bound = find_bound(connection, state.table, state.table.embedding.name)
    if not bound:
        return
    names = ", ".join(str(dependent) for dependent in bound)
    if may_leave_dependents(settings):
        logger.warning("these stay bound to the old vectors: %s", names)
        return
    drop_and_create = "drop them and create them again after the swap"
    raise SwapRefused(
        f"{len(bound)} objects depend on column {state.table.embedding.name!r} and would keep reading the old vectors: {names}",
        state="nothing was exchanged; search reads the old column",
        next_step=f"{drop_and_create}, or set DEPENDENTS=ignore to leave them on the old vectors"
        if settings.old_embedding == "keep"
        else f"{drop_and_create}; with OLD_EMBEDDING=drop there are no old vectors to leave them on",
    )


def check_dependents_on_current(
    connection: Connection, settings: SwapSettings, state: MigrationState, kept_column: str
) -> None:
    """Refuse a rollback where something made since the swap would follow the new column to `kept_column`, unless wanted."""
    current = state.table.embedding.name
    bound = find_bound(connection, state.table, current)
    if not bound:
        return
    names = ", ".join(str(dependent) for dependent in bound)
    if settings.dependents == "ignore":
        logger.warning("these stay bound to the new vectors, in %r from now on: %s", kept_column, names)
        return
    raise SwapRefused(
        f"{len(bound)} objects depend on column {current!r} and would keep reading the new vectors, in {kept_column!r}, when "
        f"search goes back to the old ones: {names}",
        state="nothing was exchanged; search reads the new vectors",
        next_step="drop them and create them again after the rollback, or set DEPENDENTS=ignore to leave them on the new vectors",
    )


def warn_of_functions(connection: Connection, state: MigrationState) -> None:
    """Name each function that fails from the exchange on as it stands, with the statement that mends it."""
    assert state.new is not None
    old, new = state.table.embedding, state.new
    functions = find_functions(connection, state.table, old)
    for told in told_unfit(functions, state.table.target, old, new.type_name, new.dimensions):
        logger.warning("%s", told)


def check_bulk_is_done(connection: Connection, settings: SwapSettings, state: MigrationState) -> None:
    """Refuse where more rows wait than a live table gets while one looks; those few are embedded before the exchange."""
    target, column = state.table.target, state.filled.name
    few = max(rows_that_are_few(state.table.estimated_rows), settings.swap_max_pending_rows)
    if has_more_pending_than(connection, target, column, few):
        raise StillPending(
            f"{count_pending(connection, target, column)} rows of {target} are pending: expected at most {few} "
            "(SWAP_MAX_PENDING_ROWS)",
            state="nothing was exchanged; search reads the old column",
            next_step="run the backfill again: bge-pipeline migrate",
        )


def use_pending_index(connection: Connection) -> None:
    """Let the index of pending rows answer, for the rest of the transaction."""
    # The planner may believe that most rows are pending and read the table to find one; the index settles it.
    connection.execute(text("SET LOCAL enable_seqscan = off"))


def verify_new_column(
    connection: Connection, settings: SwapSettings, state: MigrationState, space: EmbeddingSpace, index: str
) -> None:
    """See that the new column and its index are still what they were; the lock of `lock_out_writers` keeps them so."""
    target = state.table.target
    new = describe_table(connection, target).with_role("new")
    if new is None or new.dimensions != space.dimensions:
        raise SwapRefused(
            f"the new column of {target} does not hold {space.dimensions} dimensions", state="nothing was exchanged"
        )
    require_space(new, space, target)
    require_forward(new, settings, target)  # another process may have swapped and gone back meanwhile
    if not any(i.name == index and i.valid for i in indexes_on(connection, state.table.oid, new.number)):
        raise SwapRefused(
            f"index {index} on column {new.name!r} is not valid",
            state="nothing was exchanged",
            next_step="run the same command again",
        )
