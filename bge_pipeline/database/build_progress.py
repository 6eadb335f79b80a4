"""How far an index build is, and for whose transactions it waits, asked beside the session that builds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.lock_holders import WaitLog, find_blockers, shown_holders
from bge_pipeline.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

_PROGRESS = """
SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total FROM pg_stat_progress_create_index WHERE pid = :pid
"""


@dataclass(frozen=True)
class BuildProgress:
    """A look at pg_stat_progress_create_index.

    Attributes:
        phase: in the server's words.
        fraction: of the phase, None where the server does not say.
        waits_for: the sessions whose end the build waits for now, in words; None where it works.
    """

    phase: str
    fraction: float | None
    waits_for: str | None = None


def build_watcher(
    database: Database, connection: Connection, name: str, on_progress: Callable[[BuildProgress], None] | None
) -> Callable[[], None]:
    """A function that reports how far the statement is that `connection` runs, and whom it waits for.

    It asks on a connection of its own. A build waits for every transaction that is older than it; those that last are
    named in the log too.
    """
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    log = WaitLog(f"building index {name}")
    before: frozenset[int] = frozenset()

    def watch() -> None:
        nonlocal before
        try:
            with database.autocommit() as other:
                row = other.execute(text(_PROGRESS), {"pid": pid}).one_or_none()
                blockers = find_blockers(other, pid)
        except (DatabaseUnavailable, DBAPIError) as error:
            logger.debug("no progress of the index build can be shown: %s", error)
            return
        log(tuple(holder for holder in blockers if holder.pid in before))
        before = frozenset(holder.pid for holder in blockers)
        if row is not None and on_progress is not None:
            on_progress(BuildProgress(row.phase, _fraction(row), shown_holders(blockers) or None))

    return watch


def _fraction(row: Any) -> float | None:
    done, total = (row.tuples_done, row.tuples_total) if row.tuples_total else (row.blocks_done, row.blocks_total)
    return done / total if total else None
