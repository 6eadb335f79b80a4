"""Kinds of ids: for each its SQL type, its bytes in a COPY, its order, what follows an id, and keys of id ranges."""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.errors import BgePipelineError

Id = int | str
"""An id as it travels: an integer, or a string that the kind's SQL type reads."""


class IdKind(ABC):
    """What has to be known of ids of one kind; whoever adds a kind adds a class and an entry in `ID_KINDS`."""

    sql_type: ClassVar[str]
    """Type of an id in a staging table."""
    binary_type: ClassVar[str]
    """NumPy's type of the binary form."""
    least: ClassVar[Id | None] = None
    """The least id there can be, where new rows may come below all others; None where they come above."""

    def plain(self, value: Any) -> Id:
        """The id as it travels, from what the driver returned."""
        return str(value)

    @abstractmethod
    def binary(self, ids: Sequence[Id]) -> NDArray[Any]:
        """The ids as an array of fields of one length, each in the binary form of `sql_type`."""

    @abstractmethod
    def from_binary(self, fields: NDArray[Any]) -> list[Id]:
        """The ids again, from such an array."""

    @abstractmethod
    def successor(self, value: Id) -> Id:
        """The least id above `value`, or `value` where it is the greatest."""

    def has_successor(self, value: Id) -> bool:
        """Whether there is an id above `value`."""
        return self.successor(value) != value

    @abstractmethod
    def key(self, lower: Id, upper: Id) -> str:
        """The range from `lower` to `upper` as a partition key. Keys sort in the order of their ranges, if possible."""

    @abstractmethod
    def parse(self, key: str) -> tuple[Id, Id] | None:
        """The bounds in a partition key of this kind; None for a key of another."""


class IntegerIds(IdKind):
    """smallint, integer and bigint; keys of negative ids sort in reverse."""

    sql_type = "bigint"
    binary_type = ">i8"
    _DIGITS = 19
    """Digits of the largest bigint: keys of equal length sort as their numbers do."""
    _KEY = re.compile(r"(-?\d+)_(-?\d+)")

    def plain(self, value: Any) -> Id:
        """The id itself."""
        return int(value)

    def binary(self, ids: Sequence[Id]) -> NDArray[Any]:
        """Big-endian int64."""
        return np.array(ids, dtype=self.binary_type)

    def from_binary(self, fields: NDArray[Any]) -> list[Id]:
        """Python's integers."""
        return list(fields.astype(np.int64).tolist())

    def successor(self, value: Id) -> Id:
        """The next integer: as the upper end of a range it need not be a bigint."""
        return int(value) + 1

    def key(self, lower: Id, upper: Id) -> str:
        """Both numbers, padded."""
        return f"{lower:0{self._DIGITS}d}_{upper:0{self._DIGITS}d}"

    def parse(self, key: str) -> tuple[Id, Id] | None:
        """Two integers."""
        match = self._KEY.fullmatch(key)
        return (int(match[1]), int(match[2])) if match else None


class UuidIds(IdKind):
    """uuid: random ids arrive below the least one too."""

    sql_type = "uuid"
    binary_type = "V16"
    least = str(uuid.UUID(int=0))
    _HEX = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    _KEY = re.compile(f"({_HEX})_({_HEX})")

    def binary(self, ids: Sequence[Id]) -> NDArray[Any]:
        """The 16 bytes of each."""
        return np.frombuffer(b"".join(uuid.UUID(str(value)).bytes for value in ids), dtype=self.binary_type)

    def from_binary(self, fields: NDArray[Any]) -> list[Id]:
        """Strings with hyphens."""
        return [str(uuid.UUID(bytes=field.tobytes())) for field in fields]

    def successor(self, value: Id) -> Id:
        """The next UUID; the greatest has none."""
        return str(uuid.UUID(int=min(uuid.UUID(str(value)).int + 1, 2**128 - 1)))

    def key(self, lower: Id, upper: Id) -> str:
        """Both UUIDs."""
        return f"{lower}_{upper}"

    def parse(self, key: str) -> tuple[Id, Id] | None:
        """Two UUIDs."""
        match = self._KEY.fullmatch(key)
        return (str(uuid.UUID(match[1])), str(uuid.UUID(match[2]))) if match else None


INTEGERS = IntegerIds()
UUIDS = UuidIds()
ID_KINDS: dict[str, IdKind] = {"smallint": INTEGERS, "integer": INTEGERS, "bigint": INTEGERS, "uuid": UUIDS}
"""The kind of an id column by its type."""


@dataclass(frozen=True)
class IdRange:
    """`[lower, upper)`. An upper bound that has no successor is included, since nothing could stand above it."""

    lower: Id
    upper: Id
    kind: IdKind

    @property
    def key(self) -> str:
        """The range as a partition key."""
        return self.kind.key(self.lower, self.upper)

    @classmethod
    def from_key(cls, key: str) -> IdRange:
        """The range that a partition key names.

        Raises:
            BgePipelineError: the key is not one of ours.
        """
        for kind in dict.fromkeys(ID_KINDS.values()):
            bounds = kind.parse(key)
            if bounds is not None:
                return cls(*bounds, kind)
        raise BgePipelineError(f"expected a partition key `<lower id>_<upper id>`, got {key!r}")

    @property
    def condition(self) -> str:
        """The range as SQL about `{id}`, for the values `:lower` and `:upper`."""
        return "{id} >= :lower AND {id} " + ("<" if self.kind.has_successor(self.upper) else "<=") + " :upper"

    @property
    def values(self) -> dict[str, Id]:
        """The values of `condition`."""
        return {"lower": self.lower, "upper": self.upper}

    def __str__(self) -> str:
        return f"[{self.lower}, {self.upper})"
