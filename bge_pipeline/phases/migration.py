"""The migration of one table: what every phase works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bge_pipeline.database.connection import Database
from bge_pipeline.database.operator import Operator, operating
from bge_pipeline.database.target import TargetTable
from bge_pipeline.settings import Settings
from bge_pipeline.telemetry.tracing import tracing


@dataclass(frozen=True)
class Migration:
    """The migration of one table from one embedding model to another.

    It remembers nothing: where it stands is read from the database (`phases.state`).

    Attributes:
        database: where the table is.
        settings: which table it is, to which model it goes, and how.
    """

    database: Database
    settings: Settings

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
        return Migration(self.database, self.settings.model_copy(update=values))

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings) -> Iterator[Migration]:
        """The migration that the settings describe, its connections closed at the end; traced where TRACES asks for it."""
        with tracing(settings), Database.from_settings(settings) as database:
            yield cls(database, settings)
