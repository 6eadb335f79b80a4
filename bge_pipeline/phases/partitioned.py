"""What a partitioned table means for a migration, in words, and what of one is refused."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.partition_keys import is_kept_apart, shared_id_refusal
from bge_pipeline.database.partition_locks import PartitionLocks, partition_locks
from bge_pipeline.database.partitions import count_stored
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.errors import BgePipelineError, PhaseError
from bge_pipeline.phases.state import MigrationState
from bge_pipeline.settings import SwapSettings


def told_partitions(connection: Connection, state: MigrationState, column: str, vector: VectorType) -> tuple[str, ...]:
    """What a person must know before a migration of a partitioned table; nothing of an ordinary one."""
    target = state.table.target
    if not state.table.is_partitioned:
        return ()
    together = (
        f"{count_stored(connection, target):,} partitions are migrated together, filled and indexed one after another; "
        "DETACH PARTITION waits while the index of that one is built"
    )
    told = [together, attaching(target, column, vector)]
    locks = partition_locks(connection, target) if state.new is None else None
    if locks is not None and 2 * locks.during > locks.room:
        told.append(
            f"a search of all partitions locks {locks.now:,} tables and indexes now, and {locks.during:,} until retire; this "
            f"server has room for {locks.room:,} locks of all sessions together, so that two at once may fail with "
            f"`out of shared memory`: {_more_room(locks)}"
        )
    if not is_kept_apart(connection, target):
        looked = "no two rows have the same now" if state.new is None else "no two rows had the same before expand"
        told.append(
            f"no index keeps {str(target.key)!r} apart over all partitions: {looked}, and the application "
            "must see to it that none will. A row never gets the vector of another text, but search would find both"
        )
    return tuple(told)


def attaching(target: TargetTable, column: str, vector: VectorType) -> str:
    """What a table needs to become a partition while there is the new column."""
    return (
        f'after expand PostgreSQL attaches no table without the new column (`child table is missing column "{column}"`): '
        f"ALTER TABLE ... ADD COLUMN {quote(column)} {vector}; before ALTER TABLE {target} ATTACH PARTITION. After the swap the "
        f"columns are {quote(target.embedding_column)} {vector} and the old one beside it. Its rows are embedded when it is "
        "there. Unless it has such indexes already, they are built as it is attached, while nobody gets at it or at the DEFAULT "
        "partition. CREATE TABLE ... PARTITION OF needs nothing of this"
    )


def refusals(connection: Connection, state: MigrationState, settings: SwapSettings) -> list[BgePipelineError]:
    """Why a migration of this partitioned table would not begin; nothing of an ordinary one.

    Once there is the new column, ids are not compared again: that sorts all of them.
    """
    target = state.table.target
    if not state.table.is_partitioned:
        return []
    found: list[BgePipelineError | None] = []
    if state.new is None:  # what compares ids needs the locks
        no_room = _lock_refusal(target, partition_locks(connection, target))
        found.append(no_room or shared_id_refusal(connection, target))
    if settings.old_index == "drop":
        found.append(
            PhaseError(
                f"OLD_INDEX=drop: {target} is partitioned, and PostgreSQL neither drops the index of a partitioned table beside "
                "traffic nor builds it again so for a rollback",
                state="nothing was changed",
                next_step="OLD_INDEX=keep",
            )
        )
    return [refusal for refusal in found if refusal is not None]


def _lock_refusal(target: TargetTable, locks: PartitionLocks) -> PhaseError | None:
    if locks.during <= locks.room:
        return None
    return PhaseError(
        f"a migration of {target} needs {locks.during:,} locks at once, for every partition and its indexes with two new ones, "
        f"and this server has room for {locks.room:,}: statements over the whole table, the application's searches too, would "
        "fail with `out of shared memory`",
        state="nothing was changed",
        next_step=_more_room(locks),
    )


def _more_room(locks: PartitionLocks) -> str:
    return f"ALTER SYSTEM SET max_locks_per_transaction = {locks.setting}; and restart the server"
