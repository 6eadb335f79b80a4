"""Until: how far a backfill is to go before it ends by itself, as a share of the rows or as a number of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bge_pipeline.database.pending import count_rows
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table

_SPELLING = re.compile(r"(?P<share>\d+(?:\.\d+)?)\s*%|(?P<rows>\d+)")


@dataclass(frozen=True)
class Until:
    """A state of the column to reach; one of the two is None.

    Attributes:
        share: of the rows that have, or wait for, a vector; between 0 and 1.
        rows: that have a vector.
    """

    share: float | None
    rows: int | None

    @classmethod
    def parse(cls, words: str) -> Until:
        """The goal that a person wrote: `50%` or `20000`.

        Raises:
            ConfigurationError: it is neither.
        """
        found = _SPELLING.fullmatch(words.strip())
        if found is None or (found["share"] and float(found["share"]) > 100):
            raise ConfigurationError(
                f"expected a share of the rows, such as 50%, or a number of rows, such as 20000, got {words!r}",
                state="nothing was changed",
                next_step="correct --until",
            )
        return cls(float(found["share"]) / 100, None) if found["share"] else cls(None, int(found["rows"]))

    def missing_rows(self, embedded: int, pending: int) -> int:
        """Rows to write until it is reached, where so many have a vector and so many wait; 0 where it is."""
        goal = self.rows if self.rows is not None else math.ceil((self.share or 0.0) * (embedded + pending))
        return max(0, goal - embedded)

    def __str__(self) -> str:
        return f"{self.rows}" if self.rows is not None else f"{(self.share or 0.0) * 100:g}%"


def rows_until(migration: Migration, until: Until | None) -> int | None:
    """Rows that a backfill has to write until the goal is reached; None where there is no goal."""
    if until is None:
        return None
    state = require_table(migration)
    with migration.database.autocommit() as connection:
        counts = count_rows(connection, state.table.target, state.filled.name)
    return until.missing_rows(counts.embedded, counts.pending)
