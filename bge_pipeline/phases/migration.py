"""The migration of one table: what every phase works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from psycopg2.errors import LockNotAvailable, QueryCanceled
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.lock_holders import find_shutting_out, shown_holders
from bge_pipeline.database.operator import Operator, operating
from bge_pipeline.database.session_settings import LOOK
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError, DatabaseUnavailable, LockNotAcquired
from bge_pipeline.settings import Settings
from bge_pipeline.telemetry.tracing import tracing


@dataclass(frozen=True)
class Migration:
    """The migration of one table from one embedding model to another.

    It remembers nothing: where it stands is read from the database (`phases.state`).

    Attributes:
        database: where the table is.
        settings: which table it is, to which model it goes, and how.
        run_id: of the Dagster run that works on it, for its heartbeats to name; None outside of one.
    """

    database: Database
    settings: Settings
    run_id: str | None = None

    @cached_property
    def target(self) -> TargetTable:
        """The table that TARGET_* name.

        Raises:
            ConfigurationError: they name none.
        """
        return TargetTable.from_settings(self.settings)

    def operating(self, act: str) -> AbstractContextManager[Operator]:
        """Be the one operator of the table for the length of the block.

        Raises:
            OperatorBusy: somebody else is.
        """
        return operating(self.database, self.settings, act)

    def with_settings(self, **values: Any) -> Migration:
        """The same table on the same connections, with other values of some settings."""
        return replace(self, settings=self.settings.model_copy(update=values))

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings, *, run_id: str | None = None) -> Iterator[Migration]:
        """The migration that the settings describe, its connections closed at the end; traced where TRACES asks for it."""
        with tracing(settings), Database.from_settings(settings) as database:
            yield cls(database, settings, run_id)

    @classmethod
    @contextmanager
    def looked_at(cls, settings: Settings) -> Iterator[Migration]:
        """The same for a look that is repeated now and then: it waits for nothing longer than `LOOK` says.

        Raises:
            LockNotAcquired: somebody keeps even readers off the table; names who.
            DatabaseUnavailable: the answer takes too long.
        """
        with tracing(settings), Database.from_settings(settings, limits=LOOK) as database:
            migration = cls(database, settings)
            try:
                yield migration
            except OperationalError as error:
                if isinstance(error.orig, LockNotAvailable):
                    raise migration._locked() from error
                if not isinstance(error.orig, QueryCanceled):
                    raise
                raise DatabaseUnavailable(
                    f"a look at {migration.target} was given up after {LOOK.statement} s",
                    state="nothing was changed",
                    next_step="see what keeps the server busy; the next look comes by itself",
                ) from error

    def _locked(self) -> LockNotAcquired:
        holders = ""
        with suppress(BgePipelineError, SQLAlchemyError), self.database.autocommit() as connection:
            holders = shown_holders(find_shutting_out(connection, str(self.target)))
        return LockNotAcquired(
            f"{self.target} is locked by {holders or 'somebody'}: a look at it was given up after {LOOK.lock} s",
            state="nothing was changed",
            next_step="wait for it or end it; the next look comes by itself",
        )
