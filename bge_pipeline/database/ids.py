"""Kinds of ids: for each its SQL type, its bytes in a COPY, how its ranges end, and keys of id ranges."""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.errors import BgePipelineError

Id = int | str
"""An id as it travels: an integer, or a string that the id column's type reads."""


class IdKind(ABC):
    """What has to be known of ids of one kind."""

    sql_type: ClassVar[str]
    """Type of an id in a staging table."""
    binary_type: ClassVar[str | None]
    """NumPy's type of the binary form; None where ids differ in length."""
    as_it_travels: ClassVar[str] = "{id}"
    """SQL of an id, in a form that the driver returns for every value there can be."""
    least: ClassVar[Id | None] = None
    """The least id there can be, where new rows may come below all others; None where they come above."""
    includes_upper: ClassVar[bool] = False
    """Whether ranges are `(lower, upper]`, as they have to be where nobody can say which id comes next."""

    def plain(self, value: Any) -> Id:
        """The id as it travels, from what the driver returned for `as_it_travels`."""
        return str(value)

    def of_column(self, staged: str) -> str:
        """SQL for the template of a statement: the staged id `staged` as the id column's type compares it."""
        return staged

    @abstractmethod
    def binary(self, ids: Sequence[Id]) -> NDArray[Any] | list[bytes]:
        """The ids in the binary form of `sql_type`: an array of fields of one length, or a list where they differ."""

    @abstractmethod
    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[Id]:
        """The ids again, from what `binary` gives."""

    @abstractmethod
    def successor(self, value: Id) -> Id:
        """The least id above `value`, or `value` where there is none, or none that anybody could name."""

    def has_successor(self, value: Id) -> bool:
        """Whether there is an id above `value` that can be named."""
        return self.successor(value) != value

    @abstractmethod
    def key(self, lower: Id | None, upper: Id) -> str:
        """The bounds as the part of a partition key behind its number."""

    @abstractmethod
    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """The bounds in a partition key of this kind; None for a key of another."""


class IntegerIds(IdKind):
    """smallint, integer and bigint."""

    sql_type = "bigint"
    binary_type = ">i8"
    _KEY = re.compile(r"\d+_(-?\d+)-(-?\d+)")
    _EARLIER_KEY = re.compile(r"(?:\d+_)?(-?\d+)_(-?\d+)")
    """As earlier versions wrote it, without the number at first, and with the upper end that is not in the range."""

    def plain(self, value: Any) -> Id:
        """The id itself."""
        return int(value)

    def binary(self, ids: Sequence[Id]) -> NDArray[Any]:
        """Big-endian int64."""
        return np.array(ids, dtype=self.binary_type)

    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[Id]:
        """Python's integers."""
        return list(np.asarray(fields).astype(np.int64).tolist())

    def successor(self, value: Id) -> Id:
        """The next integer: as the upper end of a range it need not be a bigint."""
        return int(value) + 1

    def key(self, lower: Id | None, upper: Id) -> str:
        """The first and the last id that the range may hold, so that it does not seem to overlap the next one."""
        return f"_{lower}-{int(upper) - 1}"

    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """Two integers."""
        if match := self._KEY.fullmatch(key):
            return int(match[1]), int(match[2]) + 1
        match = self._EARLIER_KEY.fullmatch(key)
        return (int(match[1]), int(match[2])) if match else None


class UuidIds(IdKind):
    """uuid: random ids arrive below the least one too."""

    sql_type = "uuid"
    binary_type = "V16"
    least = str(uuid.UUID(int=0))
    _HEX = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    _KEY = re.compile(rf"(?:\d+_)?({_HEX})_({_HEX})")

    def binary(self, ids: Sequence[Id]) -> NDArray[Any]:
        """The 16 bytes of each."""
        return np.frombuffer(b"".join(uuid.UUID(str(value)).bytes for value in ids), dtype=self.binary_type)

    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[Id]:
        """Strings with hyphens."""
        return [str(uuid.UUID(bytes=bytes(field))) for field in fields]

    def successor(self, value: Id) -> Id:
        """The next UUID; the greatest has none."""
        return str(uuid.UUID(int=min(uuid.UUID(str(value)).int + 1, 2**128 - 1)))

    def key(self, lower: Id | None, upper: Id) -> str:
        """Both UUIDs."""
        return f"_{lower}_{upper}"

    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """Two UUIDs."""
        match = self._KEY.fullmatch(key)
        return (str(uuid.UUID(match[1])), str(uuid.UUID(match[2]))) if match else None


@dataclass(frozen=True)
class OtherIds(IdKind):
    """Any other type that a unique index can hold: text of any collation, numeric, bytea, dates, domains, enums.

    Ids travel as the text that the type itself writes and reads, and only the server compares them, by the id column's own
    order. Nobody can say which text comes next in a collation, so a range includes its upper end and the first one has no
    lower end.

    Attributes:
        column_type: the id column's, with its length and the like, as `format_type` writes it.
    """

    column_type: str = "text"

    sql_type = "text"
    binary_type = None
    as_it_travels = "{id}::text"
    includes_upper = True
    _KEY = re.compile(r"\d+~([^~]*)~([^~]+)")
    _READABLE = frozenset("-._:@")
    _EMPTY = "%00"
    """The empty text in a key, where nothing at all stands for no lower end; no text in PostgreSQL has this character."""

    def of_column(self, staged: str) -> str:
        """The server reads the text as it reads a constant."""
        written = self.column_type.replace("{", "{{").replace("}", "}}").replace(":", "\\:")
        return f"CAST({staged} AS {written})"

    def binary(self, ids: Sequence[Id]) -> list[bytes]:
        """UTF-8."""
        return [str(value).encode() for value in ids]

    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[Id]:
        """Strings."""
        return [bytes(field).decode() for field in fields]

    def successor(self, value: Id) -> Id:
        """None that anybody could name."""
        return value

    def key(self, lower: Id | None, upper: Id) -> str:
        """Both texts: letters of any alphabet and digits as they are, what Dagster, a shell or a URL could stumble over in
        percent-encoding."""
        return f"~{'' if lower is None else self.readable(str(lower))}~{self.readable(str(upper))}"

    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """Two texts."""
        match = self._KEY.fullmatch(key)
        if match is None:
            return None
        lower, upper = ("" if part == self._EMPTY else unquote(part) for part in match.groups())
        return lower if match[1] else None, upper

    def readable(self, value: str) -> str:
        """The text in a key. Dots in a row, or at the end, would be Dagster's sign of a range of partitions."""
        kept = "".join(c if c.isalnum() or c in self._READABLE else quote(c, safe="") for c in value).replace(
            "~", "%7E"
        )
        return re.sub(r"\.(?=\.|$)", "%2E", kept) or self._EMPTY


INTEGERS = IntegerIds()
UUIDS = UuidIds()
OTHERS = OtherIds()
"""For ranges, whose bounds are constants of a statement: the server gives those the column's type."""
_FIXED_LENGTH: dict[str, IdKind] = {"smallint": INTEGERS, "integer": INTEGERS, "bigint": INTEGERS, "uuid": UUIDS}


def kind_of(column_type: str) -> IdKind:
    """The kind of an id column by its type, as `format_type` writes it."""
    return _FIXED_LENGTH.get(column_type) or OtherIds(column_type)


def id_as_text(value: Any) -> str:
    """An id as PostgreSQL writes it, from what the driver made of it: judgements name rows by `id::text`."""
    if isinstance(value, (bytes, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        moment = value.isoformat(" ")
        whole, point, rest = moment.partition(".")
        shortened = f"{whole}.{rest[:6].rstrip('0')}{rest[6:]}" if point else whole
        return shortened.removesuffix(":00") if value.tzinfo is not None else shortened
    return str(value)


@dataclass(frozen=True)
class IdRange:
    """`[lower, upper)`, or `(lower, upper]` where the kind has it so; without a lower end where `lower` is None.

    An upper bound that has no successor is included, since nothing could stand above it.
    """

    lower: Id | None
    upper: Id
    kind: IdKind

    def key(self, number: int, digits: int = 5) -> str:
        """The range as the partition key of that number. Keys of so many digits sort by their numbers, whatever the ids are."""
        return f"{number:0{digits}d}{self.kind.key(self.lower, self.upper)}"

    @classmethod
    def from_key(cls, key: str) -> IdRange:
        """The range that a partition key names.

        Raises:
            BgePipelineError: the key is not one of ours.
        """
        for kind in (INTEGERS, UUIDS, OTHERS):
            bounds = kind.parse(key)
            if bounds is not None:
                return cls(*bounds, kind)
        raise BgePipelineError(f"expected a partition key `<number>_<first id>-<last id>`, got {key!r}")

    @property
    def condition(self) -> str:
        """The range as SQL about `{id}`, for `values`."""
        above = (
            "" if self.lower is None else "{id} > :lower AND " if self.kind.includes_upper else "{id} >= :lower AND "
        )
        return above + "{id} " + ("<" if self.kind.has_successor(self.upper) else "<=") + " :upper"

    @property
    def values(self) -> dict[str, Id]:
        """The values of `condition`."""
        return {"upper": self.upper} | ({} if self.lower is None else {"lower": self.lower})

    def __str__(self) -> str:
        if self.kind.includes_upper:
            return f"({'' if self.lower is None else self.lower}, {self.upper}]"
        return f"[{self.lower}, {self.upper})"
