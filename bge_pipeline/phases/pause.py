"""Pause and resume: a word in the table's journal that every run on any machine obeys between two batches.

Paused are the writing of vectors, by backfill, `embed` and sensors alike, the beginning of an index build and the exchange
of the columns. A run that finds the pause waits, with its model in memory, and goes on after `resume`.
"""

from __future__ import annotations

import getpass
import socket
import threading
from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.database.beside import find_beside
from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.journal import PAUSE, RESUME, record
from bge_pipeline.database.pause import PauseEntry, PauseReader, read_pause
from bge_pipeline.database.read_only import require_writable
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.brakes import PauseBrake
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pace import Pace


@dataclass(frozen=True)
class PauseResult:
    """What a pause or a resume came to.

    Attributes:
        table: schema-qualified, quoted.
        changed: False where the table was paused, or not paused, before.
        paused: whether it is now.
        latest: who said so, and when; where somebody else said the other at the same moment, whoever comes last in the
            journal. None where nobody ever paused.
    """

    table: str
    changed: bool
    paused: bool
    latest: PauseEntry | None

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def pause(migration: Migration, *, by: str | None = None, reason: str | None = None) -> PauseResult:
    """Hold every run on the table, within the batch that each has in hand, until `resume`; nothing is lost meanwhile.

    Args:
        migration: of the table.
        by: who pauses; None: this user on this machine.
        reason: shown to whoever finds the pause.

    Raises:
        TargetTableError: there is no such table.
        PhaseError: no migration has begun, so that there is nothing to hold and nowhere to say so.
        MissingPrivilege: the role may not write to the journal.
        ReadOnlyDatabase: the server takes no changes.
    """
    return _say(migration, PAUSE, by, reason)


def resume(migration: Migration, *, by: str | None = None) -> PauseResult:
    """Let the runs on the table go on, whoever paused them.

    Raises:
        TargetTableError, PhaseError, MissingPrivilege, ReadOnlyDatabase: as for `pause`.
    """
    return _say(migration, RESUME, by, None)


def paused_by(migration: Migration) -> PauseEntry | None:
    """The pause that stands now; None where runs may write."""
    with migration.database.autocommit() as connection:
        return read_pause(connection, migration.target)


def wait_while_paused(migration: Migration, stop: threading.Event | None = None) -> None:
    """Return when the table is not paused, or somebody asked for the end; says in the log why it waits."""
    brake = PauseBrake(migration.database, migration.target)
    pace = Pace(stop if stop is not None else threading.Event(), [brake])
    with pace.running(lambda: None):
        pass


def this_user() -> str:
    """The user and the machine, as others know them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry for the user's number, as in containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _say(migration: Migration, act: str, by: str | None, reason: str | None) -> PauseResult:
    target = migration.target
    with migration.database.autocommit() as connection:
        describe_table(connection, target)  # a name that is written wrongly is named
        require_writable(connection)
        if find_beside(connection, target.schema, target.journal_table) is None:
            raise PhaseError(
                f"there is nothing to {act}: no migration of {target} has begun",
                state="nothing was changed",
                next_step="bge-pipeline status",
            )
        before = read_pause(connection, target)
    changed = (before is None) == (act == PAUSE)
    if changed:
        facts = {"by": by or this_user()} | ({"reason": reason} if reason else {})
        record(migration.database, target, act, facts)
    with migration.database.autocommit() as connection:
        latest = PauseReader(target).look(connection)
    return PauseResult(str(target), changed, latest is not None and latest.paused, latest)
