"""The index of pending rows: built when few are left, so that the updates before stay HOT."""

from __future__ import annotations

import logging

from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_on_partitions import IndexRecipe, build_index_on, rebuild_index_on
from bge_pipeline.database.pending import (
    count_pending_at_most,
    has_pending_index,
    pending_index_statement,
    pending_share,
)
from bge_pipeline.database.privileges import owns
from bge_pipeline.database.snapshots import old_transactions
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import OperatorBusy
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import read_state, space_of
from bge_pipeline.settings import LockSettings
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)

_FEW = 100
_FEW_SHARE = 0.01


def build_pending_index(
    database: Database, settings: LockSettings, target: TargetTable, column: str, space: EmbeddingSpace
) -> None:
    """Build the index of rows without a vector in `column`, unless it is there."""
    build_index_on(database, settings, target, _recipe(column, space))


def compact_pending_index(
    database: Database, settings: LockSettings, target: TargetTable, column: str, space: EmbeddingSpace
) -> None:
    """Rid the index of the entries of rows that were embedded since, which a check under a lock would step over."""
    with database.autocommit() as connection:
        is_there = has_pending_index(connection, target, column)
    if is_there:
        rebuild_index_on(database, target, _recipe(column, space))
    else:
        build_pending_index(database, settings, target, column, space)


def _recipe(column: str, space: EmbeddingSpace) -> IndexRecipe:
    return IndexRecipe(
        name=lambda table: pending_index_name(table, space),
        statement=lambda table, name, head: pending_index_statement(table, column, name, head=head),
        column=column,
    )


def pending_index_name(target: TargetTable, space: EmbeddingSpace) -> str:
    """Its name: for the column as it was when it was new, since an exchange does not rename the index."""
    return target.pending_index(target.column_for(space.dimensions), space.fingerprint)


def rows_that_are_few(rows: int) -> int:
    """Pending rows of a table of so many rows that count as few."""
    return max(_FEW, int(_FEW_SHARE * rows))


def index_when_few_are_left(migration: Migration) -> None:
    """Build the index of the new column's pending rows if the bulk of them is done, and this process may build it now.

    Where it cannot, the swap does.
    """
    target = migration.target
    with migration.database.autocommit() as connection:
        state = read_state(connection, target)
        space = space_of(state.new) if state.new is not None else None
        if state.new is None or space is None or has_pending_index(connection, target, state.new.name):
            return
        few = rows_that_are_few(state.table.estimated_rows)
        if (
            not owns(connection, target)
            or pending_share(connection, target, state.new.name) > 2 * _FEW_SHARE
            or count_pending_at_most(connection, target, state.new.name, few + 1) > few
            or old_transactions(connection)  # for which the build would wait
        ):
            return
    try:
        with migration.with_settings(operator_wait_seconds=0.0).operating("index what is pending"):
            build_pending_index(migration.database, migration.settings, target, state.new.name, space)
    except OperatorBusy as busy:
        logger.debug("the index of pending rows is left to the swap: %s", busy.message)
