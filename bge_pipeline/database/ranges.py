"""Id ranges: half-open slices of ids that hold about the same number of rows, whatever gaps the ids have."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.catalog import IdKind
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError

_INTEGER_DIGITS = 19
"""Digits of the largest bigint: keys of equal length sort as their numbers do."""
_GREATEST_UUID = str(uuid.UUID(int=2**128 - 1))


@dataclass(frozen=True)
class IdRange:
    """`[lower, upper)`: ids as integers or as UUID strings. The greatest UUID there is, as an upper bound, is included."""

    lower: int | str
    upper: int | str

    @property
    def key(self) -> str:
        """The range as a partition key. Keys sort in the order of their ranges (of negative ids, in reverse)."""
        if isinstance(self.lower, int) and isinstance(self.upper, int):
            return f"{self.lower:0{_INTEGER_DIGITS}d}_{self.upper:0{_INTEGER_DIGITS}d}"
        return f"{self.lower}_{self.upper}"

    @classmethod
    def from_key(cls, key: str) -> IdRange:
        """The range that a partition key names.

        Raises:
            BgePipelineError: the key is not one of ours.
        """
        try:
            lower, upper = key.split("_")
            if "-" in lower[1:]:
                return cls(str(uuid.UUID(lower)), str(uuid.UUID(upper)))
            return cls(int(lower), int(upper))
        except ValueError:
            raise BgePipelineError(f"expected a partition key `<lower id>_<upper id>`, got {key!r}") from None

    @property
    def condition(self) -> str:
        """The range as SQL about `{id}`, for the values `:lower` and `:upper`."""
        return "{id} >= :lower AND {id} " + ("<=" if self.upper == _GREATEST_UUID else "<") + " :upper"

    @property
    def values(self) -> dict[str, int | str]:
        """The values of `condition`."""
        return {"lower": self.lower, "upper": self.upper}

    def __str__(self) -> str:
        return f"[{self.lower}, {self.upper})"


def cut_ranges(
    connection: Connection, target: TargetTable, id_kind: IdKind, rows: int, *, above: int | str | None = None
) -> list[IdRange]:
    """Cut the table, or what lies at and above the id `above`, into ranges of `rows` rows; one index-only scan.

    The last range may hold fewer rows and ends just above the greatest id, so that later rows begin a range of
    their own.
    """
    starts = [
        _plain(value)
        for value in connection.execute(
            target.sql(
                "SELECT {id} FROM (SELECT {id}, row_number() OVER (ORDER BY {id}) AS n FROM {table} "
                + ("WHERE {id} >= :above" if above is not None else "")
                + ") numbered WHERE (n - 1) % :rows = 0 ORDER BY {id}"
            ),
            {"rows": rows} | ({"above": above} if above is not None else {}),
        ).scalars()
    ]
    if not starts:
        return []
    greatest = connection.execute(target.sql("SELECT {id} FROM {table} ORDER BY {id} DESC LIMIT 1")).scalar_one()
    end = _successor(_plain(greatest), id_kind)
    bounds = [starts[0], *(start for start in starts[1:] if start != end), end]
    if above is not None:
        bounds[0] = above
    elif id_kind == "uuid":
        bounds[0] = str(uuid.UUID(int=0))  # random ids arrive below the least one too
    return [IdRange(lower, upper) for lower, upper in pairwise(bounds)]


def _plain(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def _successor(value: int | str, id_kind: IdKind) -> int | str:
    if id_kind == "integer":
        return int(value) + 1
    number = uuid.UUID(str(value)).int
    return str(uuid.UUID(int=min(number + 1, 2**128 - 1)))
