"""Which column the partitions are of, and since when what is materialized is of it: kept in Dagster's instance.

Its event log alone cannot tell, since a migration may begin by another road, and a run of Dagster's may end between the column
and the event.
"""

import json
from dataclasses import asdict, dataclass

import dagster as dg

from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.state import MigrationState, space_of

_KEPT = "filled_column"


@dataclass(frozen=True)
class FilledColumn:
    """A column, told apart from those that other migrations of the table fill.

    Attributes:
        table: the table's oid.
        number: the column's in the catalog, which an exchange does not change; 0 where none is to be filled.
        space: fingerprint of its embedding space.
    """

    table: int
    number: int
    space: str

    def is_same_as(self, other: "FilledColumn") -> bool:
        """Whether both are one; where the table was restored from a dump, which numbers anew, as far as their spaces tell."""
        return self.number == other.number if self.table == other.table else self.space == other.space


@dataclass(frozen=True)
class KeptColumn:
    """What is kept.

    Attributes:
        column: that the partitions are of.
        since: storage id behind which materializations of partitions are of it.
        at: when they became so, in seconds since the epoch; 0 in an instance of an earlier version.
    """

    column: FilledColumn
    since: int
    at: float = 0.0


def filled_column(state: MigrationState) -> FilledColumn:
    """The column that a backfill fills now."""
    if state.phase == "legacy":
        return FilledColumn(state.table.oid, 0, "")
    space = space_of(state.filled)
    return FilledColumn(state.table.oid, state.filled.number, space.fingerprint if space is not None else "")


def kept_column(instance: dg.DagsterInstance, table: ServedTable) -> KeptColumn | None:
    """The column that was kept last; None in an instance of an earlier version, and before the first expand."""
    key = table.kept_as(_KEPT)
    kept = instance.daemon_cursor_storage.get_cursor_values({key}).get(key)
    if kept is None:
        return None
    values = json.loads(kept)
    return KeptColumn(FilledColumn(**values["column"]), values["since"], values.get("at", 0.0))


def keep_column(instance: dg.DagsterInstance, table: ServedTable, kept: KeptColumn) -> None:
    """Keep it in the place of the last one."""
    instance.daemon_cursor_storage.set_cursor_values({table.kept_as(_KEPT): json.dumps(asdict(kept))})
