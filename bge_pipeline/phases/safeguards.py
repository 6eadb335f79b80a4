"""What this project keeps beside the table, quarantine, journal and trigger: made, checked, and mended where it is amiss."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, TextClause

from bge_pipeline.database.beside import find_beside
from bge_pipeline.database.journal import JOURNAL_COLUMNS, journal_statements
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.publications import find_replication
from bge_pipeline.database.quarantine import QUARANTINE_COLUMNS, quarantine_statements
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.text_columns import TextColumns, find_text_columns
from bge_pipeline.database.trigger import (
    WatchedColumns,
    others_with_function,
    trigger_fault,
    trigger_function_statement,
    trigger_statements,
)
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.exchange import lock_for_exchange
from bge_pipeline.phases.state import MigrationState, require_same_parts
from bge_pipeline.settings import LockSettings

logger = logging.getLogger(__name__)


def maintains_old(state: MigrationState) -> bool:
    """Whether this project fills the embedding column too, because an earlier migration made it."""
    note = state.table.embedding.note
    return note is not None and note.role == "current"


def has_companion(state: MigrationState, watched: WatchedColumns) -> bool:
    """Whether a column is, or with these watched columns is about to be, kept current beside the one that is filled."""
    return state.companion is not None or (state.previous is None and watched.also_empty is not None)


def watched_columns(state: MigrationState) -> WatchedColumns | None:
    """The columns that the trigger has to empty as the table stands; None before expand."""
    embedding = state.table.target.embedding_column
    if state.new is not None:
        return WatchedColumns(state.new.name, embedding if maintains_old(state) else None)
    if state.phase == "legacy":
        return None
    return WatchedColumns(embedding, state.previous.name if state.previous is not None else None)


def safeguard_script(target: TargetTable, watched: WatchedColumns) -> list[TextClause]:
    """The statements that make all of it beside a table that has none of it, in order."""
    return [*quarantine_statements(target), *journal_statements(target), *_trigger(target, watched)]


def safeguard_statements(
    connection: Connection, state: MigrationState, watched: WatchedColumns | None = None
) -> list[TextClause]:
    """The statements that make or mend what is missing or amiss; none where everything is right.

    Args:
        connection: in a transaction.
        state: where the table stands.
        watched: the columns that the trigger is to empty; None: those of `state`.

    Raises:
        PhaseError: all of it belongs to the migration of another table.
    """
    target = state.table.target
    watched = watched or watched_columns(state)
    if watched is None:
        return []
    obstacle = names_obstacle(connection, state)
    if obstacle is not None:
        raise obstacle
    unlogged = find_replication(connection, state.table).takes_new_tables
    quarantine = find_beside(connection, target.schema, target.quarantine_table)
    journal = find_beside(connection, target.schema, target.journal_table)
    statements = [
        *quarantine_statements(target, quarantine, unlogged=unlogged),
        *(
            _companion_quarantine(connection, target.companion, unlogged=unlogged)
            if has_companion(state, watched)
            else ()
        ),
        *journal_statements(target, journal, unlogged=unlogged),
    ]
    if trigger_fault(connection, state.table, watched) is not None:
        statements += trigger_script(connection, state, watched)
    return statements


def trigger_script(connection: Connection, state: MigrationState, watched: WatchedColumns) -> list[TextClause]:
    """The statements that make the triggers of these columns, or mend them."""
    target = state.table.target
    made_of = None if state.table.text_is_plain_column else find_text_columns(connection, target)
    return _trigger(target, watched, made_of)


def _companion_quarantine(connection: Connection, companion: TargetTable, *, unlogged: bool) -> list[TextClause]:
    return quarantine_statements(
        companion, find_beside(connection, companion.schema, companion.quarantine_table), unlogged=unlogged
    )


def mend(operator: Operator, settings: LockSettings, state: MigrationState) -> None:
    """Put right what an earlier version, or somebody, left otherwise; takes no lock where nothing is amiss.

    Raises:
        MissingPrivilege: something is amiss, and the role may not alter the table.
        LockNotAcquired: the table was never free for LOCK_TIMEOUT_MS.
    """
    with operator.database.transaction() as connection:
        if not safeguard_statements(connection, state):
            return
        require_privileges(connection, state.table)

    def work(connection: Connection) -> None:
        watched = watched_columns(state)
        if state.table.is_partitioned and watched and trigger_fault(connection, state.table, watched) is not None:
            lock_for_exchange(connection, state)  # all of them within one wait, where a trigger locks one after another
        else:
            require_same_parts(connection, state)
        for statement in safeguard_statements(connection, state):
            connection.execute(statement)

    logger.info("mending the trigger and the tables beside %s", state.table.target)
    operator.change(settings, "expand: mend the trigger and the tables beside it", work)


def taken_names(connection: Connection, state: MigrationState, column: str) -> list[str]:
    """What of the user's own bears a name that a migration into `column` needs, each as a person would say it.

    The new column's name, the one that the swap will give the old column, the one between, and those of the tables beside.
    """
    target = state.table.target
    ours = state.new.name if state.new is not None else None
    columns = (column, target.column_for(state.table.embedding.dimensions), target.exchange_column)
    taken = [f"a column {name!r}" for name in dict.fromkeys(columns) if name in state.table.columns and name != ours]
    for name, shape in ((target.quarantine_table, QUARANTINE_COLUMNS), (target.journal_table, JOURNAL_COLUMNS)):
        found = find_beside(connection, target.schema, name)
        if found is not None and not found.is_ours(shape):
            taken.append(f"beside it {name!r} in schema {target.schema!r}")
    return taken


def names_obstacle(connection: Connection, state: MigrationState) -> PhaseError | None:
    """Why nothing can be kept beside the table: another table and its column join to the same names.

    `docs` with `title_embedding` and `docs_title` with `embedding` are such a pair: one function would empty the vectors of one.
    """
    others = others_with_function(connection, state.table)
    if not others:
        return None
    target = state.table.target
    return PhaseError(
        f"trigger, quarantine and journal of {target} and its column {target.embedding_column!r} would bear the names of those "
        f"of {', '.join(others)}",
        state="nothing was changed",
        next_step="rename this table or its embedding column, so that the two names in one are no other table's",
    )


def _trigger(target: TargetTable, watched: WatchedColumns, text_columns: TextColumns | None = None) -> list[TextClause]:
    function = trigger_function_statement(target, watched.column, also_empty=watched.also_empty)
    return [function, *trigger_statements(target, watched.column, text_columns)]
