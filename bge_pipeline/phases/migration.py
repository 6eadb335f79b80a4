"""The migration of one table: what every phase works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable
from bge_pipeline.settings import Settings


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
