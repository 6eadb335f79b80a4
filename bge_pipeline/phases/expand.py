"""Expand: put the new column beside the old one, with everything that keeps it true. Undone by `collapse`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, TextClause

from bge_pipeline.database.dependents import Dependent, find_dependents
from bge_pipeline.database.functions import find_functions
from bge_pipeline.database.indexes import (
    Index,
    drop_index,
    vector_indexes_on,
)
from bge_pipeline.database.journal import index_journal, record
from bge_pipeline.database.lock_holders import naming_blockers
from bge_pipeline.database.notes import ColumnNote, note_statement
from bge_pipeline.database.operator import Operator
from bge_pipeline.database.pgvector_version import require_version
from bge_pipeline.database.privileges import require_privileges
from bge_pipeline.database.publications import find_replication, require_updates
from bge_pipeline.database.quarantine import copy_quarantine_statement, release_all
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.storage import targets_to_lower, tuple_target_for, tuple_target_statement
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.tested_versions import untested_versions
from bge_pipeline.database.text_columns import find_text_columns
from bge_pipeline.database.trigger import WatchedColumns
from bge_pipeline.database.update_rules import require_no_instead
from bge_pipeline.database.user_triggers import find_user_triggers
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.errors import ConfigurationError, PhaseError
from bge_pipeline.phases.companion import can_be_kept, missing_model
from bge_pipeline.phases.consent import require_consent
from bge_pipeline.phases.exchange import lock_for_exchange
from bge_pipeline.phases.function_words import told_functions
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.part import told_part
from bge_pipeline.phases.partitioned import refusals, told_partitions
from bge_pipeline.phases.pending_index import build_pending_index
from bge_pipeline.phases.safeguards import (
    maintains_old,
    mend,
    names_obstacle,
    safeguard_statements,
    taken_names,
)
from bge_pipeline.phases.state import MigrationState, read_state, require_space, require_text
from bge_pipeline.phases.surroundings import hidden_changes, told_replication
from bge_pipeline.settings import ModelSettings, Settings
from bge_pipeline.space import EmbeddingSpace
from bge_pipeline.telemetry.observed import observed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpandResult:
    """What expand did; `added` is False when the column was there already, `table_bytes_before` the size at the start."""

    table: str
    column: str
    dimensions: int
    added: bool
    dropped_indexes: tuple[str, ...]
    dependents: tuple[str, ...]
    table_bytes_before: int

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@observed("expand")
def expand(migration: Migration, space: EmbeddingSpace, *, begin_next: bool = False) -> ExpandResult:
    """Add the column for `space`, its trigger and quarantine; drop the old ANN index if asked to.

    Safe to interrupt and to repeat: each step looks at what is there first.

    Args:
        migration: among its settings OLD_INDEX, BEGIN_NEXT_MIGRATION and FORWARD_AFTER_ROLLBACK.
        space: the embedding space of the new column.
        begin_next: begin another migration where the last one is over.

    Raises:
        ConsentRequired: the last migration is over or was rolled back, and nobody has agreed to go on.
        SessionNotKept: the connection is one to a pooler that lends server connections for a transaction.
        PhaseError: an earlier migration has not been retired.
        EmbeddingSpaceMismatch: a migration to another space is under way.
        OperatorBusy: another process changes the table's schema now.
    """
    with migration.operating("expand") as operator:
        return _expand(operator, migration.settings, space, begin_next=begin_next)


def _expand(operator: Operator, settings: Settings, space: EmbeddingSpace, *, begin_next: bool) -> ExpandResult:
    database, target = operator.database, operator.target
    check_dimensions(settings, space)
    with database.autocommit() as connection:
        state = read_state(connection, target)
        require_version(connection, settings)
        size = table_bytes(connection, target)
    if _is_done_already(state, space):
        mend(operator, settings, state)
        index_journal(database, target, lock_timeout_ms=settings.lock_timeout_ms)
        return ExpandResult(str(target), target.embedding_column, space.dimensions, False, (), (), size)

    require_consent(state, settings, space, given=begin_next)
    if not state.table.text_is_plain_column:
        with database.transaction() as connection:
            find_text_columns(connection, target)
    column, vector = target.column_for(space.dimensions), VectorType(settings.target_vector_type, space.dimensions)
    _check_type(state, vector)
    with database.autocommit() as connection:
        _check_names_are_free(connection, state, column)
        old_indexes = vector_indexes_on(connection, state.table.oid, state.table.embedding.number)
        dependents = find_dependents(connection, state.table, target.embedding_column)
        require_privileges(connection, state.table, skips_triggers=settings.skips_triggers)
        require_updates(connection, state.table)
        require_no_instead(connection, state.table, skipping=settings.skips_triggers)
        told = [untested_versions(connection), told_part(connection, target, column)]
        for refusal in refusals(connection, state, settings):
            raise refusal
        lowered = targets_to_lower(connection, target, vector)
        functions = find_functions(connection, state.table, state.table.embedding)
        around = (
            *told_functions(functions, target, state.table.embedding, vector),
            *told_replication(find_replication(connection, state.table), state, column, vector),
            *hidden_changes(find_user_triggers(connection, state.table)),
            *told_partitions(connection, state, column, vector),
        )
    doomed = [index for index in old_indexes if settings.old_index == "drop"]
    note = _note(state, space, doomed, next(iter(lowered.values()), None))
    _tell(target, dependents, [*around, *filter(None, told)])

    def add_column(connection: Connection) -> None:
        lock_for_exchange(connection, state)
        watched = WatchedColumns(column, target.embedding_column if maintains_old(state) else None)
        safeguards = safeguard_statements(connection, state, watched)
        for statement in expand_statements(target, vector, note, safeguards, lowered=lowered):
            connection.execute(statement)
        if state.new is None:  # what another model could not embed
            if maintains_old(state):
                connection.execute(copy_quarantine_statement(target, target.companion))
            release_all(connection, target)

    operator.change(settings, "expand: add the column", add_column)
    index_journal(database, target, lock_timeout_ms=settings.lock_timeout_ms)
    if maintains_old(state) and state.current_space is not None:
        _keep_searched_current(operator, settings, state.current_space)
    with database.autocommit() as connection:
        for index in doomed:
            logger.info("dropping index %s on the old column; rollback builds it again", index.name)
            with naming_blockers(database, connection, f"dropping index {index.name}"):
                drop_index(connection, target.schema, index.name)
    result = ExpandResult(
        table=str(target),
        column=column,
        dimensions=space.dimensions,
        added=state.new is None,
        dropped_indexes=tuple(index.name for index in doomed),
        dependents=tuple(str(dependent) for dependent in dependents),
        table_bytes_before=size,
    )
    record(database, target, "expand", result.as_metadata())
    return result


def expand_statements(
    target: TargetTable,
    vector: VectorType,
    note: ColumnNote,
    safeguards: Sequence[TextClause],
    *,
    lowered: Iterable[TargetTable],
) -> list[TextClause]:
    """The statements that add the column, say whose vectors it holds and keep it true; each may be repeated.

    Args:
        target: the table.
        vector: the column's type.
        note: the column's.
        safeguards: what makes or mends the trigger and the tables beside.
        lowered: the tables whose `toast_tuple_target` is too high for vectors of this size to be stored out of line: itself,
            or partitions of it.
    """
    column = target.column_for(vector.dimensions)
    return [
        target.sql(f"ALTER TABLE {{table}} ADD COLUMN IF NOT EXISTS {{column}} {vector}", column=column),
        note_statement(target, column, note),
        *safeguards,
        *(tuple_target_statement(table, tuple_target_for(vector)) for table in lowered),
    ]


def check_dimensions(settings: ModelSettings, space: EmbeddingSpace) -> None:
    """Refuse a model that does not make vectors of EMBEDDING_DIMENSIONS."""
    if space.dimensions != settings.embedding_dimensions:
        raise ConfigurationError(
            f"EMBEDDING_DIMENSIONS is {settings.embedding_dimensions}, and {space.model} makes {space.dimensions} dimensions",
            state="nothing was changed",
            next_step=f"set EMBEDDING_DIMENSIONS={space.dimensions}, or another EMBEDDING_MODEL",
        )


def _check_type(state: MigrationState, vector: VectorType) -> None:
    if state.new is not None and state.new.type_name != vector.element:
        raise PhaseError(
            f"column {state.new.name!r} of {state.table.target} is {state.new.full_type}, and the settings ask for {vector}",
            state="nothing was changed",
            next_step=f"TARGET_VECTOR_TYPE={state.new.type_name}; or bge-pipeline rollback --discard, then begin anew",
        )


def _check_names_are_free(connection: Connection, state: MigrationState, column: str) -> None:
    obstacle = names_obstacle(connection, state)
    if obstacle is not None:
        raise obstacle
    taken = taken_names(connection, state, column)
    if taken:
        raise PhaseError(
            f"{state.table.target} already has {', '.join(taken)}, which this tool did not make and whose name it needs",
            state="nothing was changed",
            next_step="rename or drop that first",
        )


def _is_done_already(state: MigrationState, space: EmbeddingSpace) -> bool:
    target = state.table.target
    if state.new is not None:
        require_space(state.new, space, target)
        return False
    if maintains_old(state):
        require_text(state.table.embedding, target)
    if state.current_space is not None and state.current_space.is_same_as(space):
        return True
    if state.phase == "swapped":
        raise PhaseError(
            f"{target} still keeps {state.previous.name if state.previous else 'the old column'!r} of the last migration",
            state="nothing was changed",
            next_step="bge-pipeline retire (drops the old vectors), or bge-pipeline rollback, then begin the next migration",
        )
    return False


def _note(
    state: MigrationState, space: EmbeddingSpace, doomed: list[Index], tuple_target_before: int | None
) -> ColumnNote:
    """The new column's note; a repeated expand keeps what the first one recorded, but no rollback: by now it is agreed to."""
    earlier = state.new.note if state.new is not None else None
    definitions = dict.fromkeys(earlier.dropped_indexes if earlier is not None else ())
    definitions |= dict.fromkeys(index.definition for index in doomed if index.valid)
    return ColumnNote(
        "new",
        earlier.space if earlier is not None else space,
        dropped_indexes=tuple(definitions),
        embedding_column=state.table.target.embedding_column,
        tuple_target_before=earlier.tuple_target_before if earlier is not None else tuple_target_before,
        text=state.table.target.row_text.recorded,
    )


def _tell(target: TargetTable, dependents: Sequence[Dependent], around: Sequence[str]) -> None:
    """Warn of everything around the table that a person has to see to."""
    for dependent in dependents:
        if dependent.bound:  # the others are told at length
            logger.warning(
                "%s depends on the old column %r; see it to the new one before the swap",
                dependent,
                target.embedding_column,
            )
    for told in around:
        logger.warning("%s", told)


def _keep_searched_current(operator: Operator, settings: Settings, space: EmbeddingSpace) -> None:
    """See that what is pending in the searched column can be found, and say so where nobody can embed it."""
    if not can_be_kept(space, settings):
        logger.warning("%s", missing_model(space, is_before_swap=True))
    build_pending_index(operator.database, settings, operator.target, operator.target.embedding_column, space)
