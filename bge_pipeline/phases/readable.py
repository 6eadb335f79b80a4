"""Reading a table that somebody may keep even readers off: waits are short, whoever it is is named, and a stop is heeded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from psycopg2.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.lock_holders import LockWatch, WaitLog
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import TableLocked
from bge_pipeline.errors import Stopped

_SHORT_WAIT = "SET lock_timeout = '1s'"
_FIRST_LOOK_SECONDS = 0.2
"""Within that wait, at who is waited for."""

Result = TypeVar("Result")


@contextmanager
def waiting_briefly(database: Database) -> Iterator[Connection]:
    """An autocommit connection whose statements give up after a second's wait for a lock, and which gives way to others'."""
    with database.autocommit() as connection:
        is_to_end = database.give_way(connection)
        before = connection.execute(text("SHOW lock_timeout")).scalar_one()
        connection.execute(text(_SHORT_WAIT))
        try:
            yield connection
        finally:
            if is_to_end:
                connection.invalidate()
            if not connection.invalidated:
                try:
                    connection.execute(text("SELECT set_config('lock_timeout', :before, false)"), {"before": before})
                except DBAPIError:
                    connection.invalidate()


def read_when_unlocked(
    database: Database,
    connection: Connection,
    table: TargetTable,
    hold: Callable[[str, str], bool],
    read: Callable[[], Result],
) -> Result:
    """What `read` gives, tried again for as long as somebody keeps readers off the table, as VACUUM FULL does.

    Args:
        database: where to ask who it is.
        connection: of `waiting_briefly`, on which `read` reads.
        table: that it reads.
        hold: told why in a word and in a sentence, waits a moment and returns whether to go on.
        read: the read.

    Raises:
        Stopped: it is locked still, and `hold` wants no more.
    """
    try:
        return read()
    except DBAPIError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
    watch = LockWatch(database, first_look_seconds=_FIRST_LOOK_SECONDS)
    wait: WaitLog | None = None
    while True:
        try:
            with watch.running() as follow:
                follow(connection)
                return read()
        except DBAPIError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
        locked = TableLocked(table, watch.holders)
        wait = wait or WaitLog(f"{table} is locked, and cannot be read", level=logging.WARNING)
        wait(locked.holders)
        if not hold("locked", str(locked)):
            raise Stopped(
                f"stopped, as asked: {locked}",
                state="every committed batch is kept",
                next_step="run the same command again; it resumes",
            )
