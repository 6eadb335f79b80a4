"""Strong locks without a queue: a short lock_timeout, and another attempt after a pause."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from psycopg2.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from bge_pipeline.database.connection import Database
from bge_pipeline.database.lock_holders import LockWatch, shown_holders
from bge_pipeline.errors import LockNotAcquired
from bge_pipeline.telemetry.metrics import LOCK_CONFLICTS, LOCK_WAIT_SECONDS

if TYPE_CHECKING:
    from bge_pipeline.settings import LockSettings

_LONGEST_STATEMENT_MS = 10_000
"""Whatever goes wrong under a strong lock, the application waits no longer than this for one statement of ours."""

_LONGEST_SILENCE_MS = 5_000
"""A process that was stopped, or a machine that sleeps, under a lock: after so long the server ends its session instead."""

_FIRST_LOOK = 0.4
"""Share of LOCK_TIMEOUT_MS after which the server is asked who is in the way: while the wait lasts, and more than once."""

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def in_short_transaction(
    database: Database, settings: LockSettings, purpose: str, work: Callable[[Connection], Result]
) -> Result:
    """Run `work` in a transaction that gives up its wait for a lock after LOCK_TIMEOUT_MS, and try again.

    A statement that waits for a strong lock makes every later query of the application wait behind it. So the wait
    is short, the whole transaction is rolled back, and the pause between attempts grows.

    Raises:
        LockNotAcquired: LOCK_MAX_ATTEMPTS attempts ran out; nothing was changed.
    """

    def attempt(watch: LockWatch) -> Result:
        # The watch ends after the transaction: nothing of it is waited for while the lock is held.
        with watch.running() as follow, database.transaction() as connection:
            follow(connection)
            return _bounded(connection, settings, work)

    return with_lock_retries(database, settings, purpose, attempt)


def short_transaction_on(
    database: Database,
    connection: Connection,
    settings: LockSettings,
    work: Callable[[Connection], Result],
    watch: LockWatch,
) -> Result:
    """One attempt at `work` in a transaction of a session that the caller keeps and that is in none now."""
    with watch.running() as follow, database.reachable(), connection.begin():
        follow(connection)
        return _bounded(connection, settings, work)


def _bounded(connection: Connection, settings: LockSettings, work: Callable[[Connection], Result]) -> Result:
    for statement in short_transaction_statements(settings):
        connection.execute(statement)
    return work(connection)


def with_short_lock_wait(
    database: Database,
    settings: LockSettings,
    purpose: str,
    statement: TextClause,
    *,
    prepare: Callable[[Connection], object] = lambda _: None,
) -> None:
    """Run a statement that may not stand in a transaction and needs a strong lock (VACUUM FULL), in the same way.

    `prepare` may give the session more settings, which end with it.

    Raises:
        LockNotAcquired: LOCK_MAX_ATTEMPTS attempts ran out; nothing was changed.
    """

    def attempt(watch: LockWatch) -> None:
        with watch.running() as follow, database.autocommit() as connection:
            try:
                follow(connection)
                connection.execute(text(f"SET lock_timeout = {settings.lock_timeout_ms}"))
                prepare(connection)
                connection.execute(statement)
            finally:
                connection.invalidate()  # the setting goes with the session

    with_lock_retries(database, settings, purpose, attempt)


def with_lock_retries(
    database: Database, settings: LockSettings, purpose: str, attempt: Callable[[LockWatch], Result]
) -> Result:
    """Make the attempt again, after a growing pause, while all that fails is the wait for a lock.

    Each attempt is given a watch that it lets run beside the session that waits, to learn who is in the way.

    Raises:
        LockNotAcquired: LOCK_MAX_ATTEMPTS attempts ran out.
    """
    watch = LockWatch(database, first_look_seconds=settings.lock_timeout_ms / 1_000 * _FIRST_LOOK)
    counted_seconds = 0.0

    def report(state: RetryCallState) -> None:
        nonlocal counted_seconds
        waited = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        LOCK_CONFLICTS.inc()
        LOCK_WAIT_SECONDS.inc(waited - counted_seconds)
        counted_seconds = waited
        logger.info(
            "%s: the table is busy, attempt %d of %d; held by %s",
            purpose,
            state.attempt_number,
            settings.lock_max_attempts,
            _held_by(watch),
        )

    retrying = Retrying(
        retry=retry_if_exception(is_lock_conflict),
        stop=stop_after_attempt(settings.lock_max_attempts),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        before_sleep=report,
        reraise=True,
    )
    try:
        return retrying(attempt, watch)
    except DBAPIError as error:
        if not is_lock_conflict(error):
            raise
        LOCK_CONFLICTS.inc()
        raise LockNotAcquired(
            f"{purpose}: could not lock the table within {settings.lock_timeout_ms} ms, {settings.lock_max_attempts} times; "
            f"it is held by {_held_by(watch)}",
            state="nothing was changed by this step",
            next_step="run the same command again when long transactions on the table have ended, or raise LOCK_TIMEOUT_MS",
        ) from error


def _held_by(watch: LockWatch) -> str:
    return shown_holders(watch.holders) or "somebody who had ended before the server could be asked"


def short_transaction_statements(settings: LockSettings) -> list[TextClause]:
    """The statements that bound what a transaction with a strong lock may cost: its waits, longest statement and silence."""
    return [
        text(f"SET LOCAL lock_timeout = '{settings.lock_timeout_ms}ms'"),
        text(f"SET LOCAL statement_timeout = '{settings.lock_timeout_ms + _LONGEST_STATEMENT_MS}ms'"),
        silence_statement(),
    ]


def silence_statement(busy_ms: int = 0) -> TextClause:
    """The statement after which the server ends the session if its transaction says nothing for too long.

    Whoever holds locks and was stopped (SIGSTOP, a laptop that sleeps, a network that is gone) would hold them for as long.

    Args:
        busy_ms: for how long the process may work between two statements of the transaction.
    """
    return text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LONGEST_SILENCE_MS + busy_ms}ms'")


def is_lock_conflict(error: BaseException) -> bool:
    """Whether the statement failed only because somebody else holds the lock."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, (LockNotAvailable, DeadlockDetected))
