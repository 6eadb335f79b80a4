"""Kinds of ids of one column: for each its SQL type, its bytes in a COPY, how its ranges end, and keys of id ranges."""

from __future__ import annotations

import json
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

from bge_pipeline.database.row_key import numbered

ColumnId = int | str
"""An id of one column as it travels: an integer, or a string that the column's type reads."""
Id = ColumnId | tuple[ColumnId, ...]
"""An id as it travels: the column's, or a tuple of those of several columns, which the driver writes as a row of SQL."""


class IdKind(ABC):
    """What has to be known of ids of one kind."""

    as_it_travels: ClassVar[str] = "{id}"
    """SQL of an id, in a form that the driver returns for every value there can be."""
    least: ClassVar[Id | None] = None
    """The least id there can be, where new rows may come below all others; None where they come above."""
    includes_upper: ClassVar[bool] = False
    """Whether ranges are `(lower, upper]`, as they have to be where nobody can say which id comes next."""

    @property
    @abstractmethod
    def parts(self) -> tuple[ColumnIds, ...]:
        """The kind of each column of the key."""

    @abstractmethod
    def columns(self, ids: Sequence[Id]) -> list[Sequence[ColumnId]]:
        """The values of each column."""

    @abstractmethod
    def from_columns(self, columns: Sequence[Sequence[ColumnId]]) -> list[Id]:
        """The ids again, from what `columns` gives."""

    @abstractmethod
    def plain(self, value: Any) -> Id:
        """The id as it travels, from what the driver returned for `as_it_travels`."""

    @abstractmethod
    def successor(self, value: Id) -> Id:
        """The least id above `value`, or `value` where there is none, or none that anybody could name."""

    def has_successor(self, value: Id) -> bool:
        """Whether there is an id above `value` that can be named."""
        return self.successor(value) != value

    @abstractmethod
    def key(self, lower: Id | None, upper: Id) -> str:
        """The bounds as the part of a partition key behind its number."""

    @property
    def staging_columns(self) -> list[tuple[str, str]]:
        """Name and type of each column of the key in a staging table."""
        return list(zip(numbered("id", len(self.parts)), (part.sql_type for part in self.parts), strict=True))

    @property
    def staged(self) -> list[str]:
        """SQL for the template of a statement: the id of a staged row `s` as each of the key's own columns compares it."""
        names = numbered("s.id", len(self.parts))
        return [part.of_column(name) for part, name in zip(self.parts, names, strict=True)]

    def same(self, columns: Sequence[str], others: Sequence[str]) -> str:
        """SQL for the template of a statement: whether two ids are one, given the SQL of each column of both."""
        pairs = zip(columns, self.parts, others, strict=True)
        return " AND ".join(f"{column} {part.equals} {other}" for column, part, other in pairs)


class ColumnIds(IdKind):
    """Ids of one column."""

    sql_type: ClassVar[str]
    """Type of an id in a staging table."""
    binary_type: ClassVar[str | None]
    """NumPy's type of the binary form; None where ids differ in length."""

    @property
    def equals(self) -> str:
        """SQL for the template of a statement: the operator by which the id column's type finds two ids equal."""
        return "="

    @property
    def parts(self) -> tuple[ColumnIds, ...]:
        """This one."""
        return (self,)

    def columns(self, ids: Sequence[Any]) -> list[Sequence[ColumnId]]:
        """The ids themselves."""
        return [ids]

    def from_columns(self, columns: Sequence[Sequence[ColumnId]]) -> list[Id]:
        """The only column's."""
        return list(columns[0])

    def plain(self, value: Any) -> ColumnId:
        """As a string."""
        return str(value)

    def of_column(self, staged: str) -> str:
        """SQL for the template of a statement: the staged id `staged` as the id column's type compares it."""
        return staged

    @abstractmethod
    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """The bounds in a partition key of this kind; None for a key of another."""

    @abstractmethod
    def binary(self, ids: Sequence[ColumnId]) -> NDArray[Any] | list[bytes]:
        """The ids in the binary form of `sql_type`: an array of fields of one length, or a list where they differ."""

    @abstractmethod
    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[ColumnId]:
        """The ids again, from what `binary` gives."""


class IntegerIds(ColumnIds):
    """smallint, integer and bigint."""

    sql_type = "bigint"
    binary_type = ">i8"
    _KEY = re.compile(r"\d+_(-?\d+)-(-?\d+)")
    _EARLIER_KEY = re.compile(r"(?:\d+_)?(-?\d+)_(-?\d+)")
    """As earlier versions wrote it, without the number at first, and with the upper end that is not in the range."""

    def plain(self, value: Any) -> ColumnId:
        """The id itself."""
        return int(value)

    def binary(self, ids: Sequence[ColumnId]) -> NDArray[Any]:
        """Big-endian int64."""
        return np.array(ids, dtype=self.binary_type)

    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[ColumnId]:
        """Python's integers."""
        numbers = fields if isinstance(fields, np.ndarray) else np.frombuffer(b"".join(fields), self.binary_type)
        return list(numbers.astype(np.int64).tolist())

    def successor(self, value: Any) -> Id:
        """The next integer: as the upper end of a range it need not be a bigint."""
        return int(value) + 1

    def key(self, lower: Id | None, upper: Any) -> str:
        """The first and the last id that the range may hold, so that it does not seem to overlap the next one."""
        return f"_{lower}-{int(upper) - 1}"

    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """Two integers."""
        if match := self._KEY.fullmatch(key):
            return int(match[1]), int(match[2]) + 1
        match = self._EARLIER_KEY.fullmatch(key)
        return (int(match[1]), int(match[2])) if match else None


class UuidIds(ColumnIds):
    """uuid: random ids arrive below the least one too."""

    sql_type = "uuid"
    binary_type = "V16"
    least = str(uuid.UUID(int=0))
    _HEX = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    _KEY = re.compile(rf"(?:\d+_)?({_HEX})_({_HEX})")

    def binary(self, ids: Sequence[ColumnId]) -> NDArray[Any]:
        """The 16 bytes of each."""
        return np.frombuffer(b"".join(uuid.UUID(str(value)).bytes for value in ids), dtype=self.binary_type)

    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[ColumnId]:
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
class OtherIds(ColumnIds):
    """Any other type that a unique index can hold: text of any collation, numeric, bytea, dates, domains, enums.

    Ids travel as the text that the type itself writes and reads, and only the server compares them, by the id column's own
    order. Nobody can say which text comes next in a collation, so a range includes its upper end and the first one has no
    lower end.

    Attributes:
        column_type: the id column's in SQL that means the same by every search_path; a type of the server's own has its length.
        operator: by which it finds two ids equal, in such SQL.
    """

    column_type: str = "text"
    operator: str = "="

    sql_type = "text"
    binary_type = None
    as_it_travels = "{id_texts}"
    includes_upper = True
    _KEY = re.compile(r"\d+~([^~]*)~([^~]+)")

    def of_column(self, staged: str) -> str:
        """The server reads the text as it reads a constant."""
        return f"CAST({staged} AS {in_template(self.column_type)})"

    @property
    def equals(self) -> str:
        """The type's own: that of text, which would be taken for one that is not on the search_path, has another index."""
        return in_template(self.operator)

    def binary(self, ids: Sequence[ColumnId]) -> list[bytes]:
        """UTF-8."""
        return [str(value).encode() for value in ids]

    def from_binary(self, fields: NDArray[Any] | Sequence[bytes]) -> list[ColumnId]:
        """Strings."""
        return [bytes(field).decode() for field in fields]

    def successor(self, value: Id) -> Id:
        """None that anybody could name."""
        return value

    def key(self, lower: Id | None, upper: Id) -> str:
        """Both texts, the lower one empty where there is none."""
        return f"~{'' if lower is None else readable(lower)}~{readable(upper)}"

    def parse(self, key: str) -> tuple[Id | None, Id] | None:
        """Two texts."""
        match = self._KEY.fullmatch(key)
        if match is None:
            return None
        return read_again(match[1]) if match[1] else None, read_again(match[2])


INTEGERS = IntegerIds()
UUIDS = UuidIds()
OTHERS = OtherIds()
"""For ranges, whose bounds are constants of a statement: the server gives those the column's type."""

_READABLE = frozenset("-._:@")
_EMPTY = "%00"
"""The empty text in a key, where nothing at all stands for no lower end; no text in PostgreSQL has this character."""


def readable(value: Id) -> str:
    """An id of a column in a partition key: letters of any alphabet and digits as they are, what Dagster, a shell or a URL
    could stumble over in percent-encoding. Dots in a row, or at the end, would be Dagster's sign of a range of partitions."""
    kept = "".join(c if c.isalnum() or c in _READABLE else quote(c, safe="") for c in str(value)).replace("~", "%7E")
    return re.sub(r"\.(?=\.|$)", "%2E", kept) or _EMPTY


def read_again(part: str) -> str:
    """The id again, from what `readable` gives."""
    return "" if part == _EMPTY else unquote(part)


def in_template(sql: str) -> str:
    """SQL as it stands in the template of a statement, whose braces and colons mean something else."""
    return sql.replace("{", "{{").replace("}", "}}").replace(":", "\\:")


def from_driver(values: Sequence[Any]) -> Any:
    """The id of a row whose key's columns have these values: the value of the only column, or a tuple."""
    return values[0] if len(values) == 1 else tuple(values)


def id_as_text(value: Any) -> str:
    """An id as PostgreSQL writes it, from what the driver made of it or from an id as it travels: judgements name rows so.

    Of several columns a JSON array of such texts, as `RowKey.text` makes it.
    """
    if isinstance(value, tuple):
        return json.dumps([id_as_text(part) for part in value], ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
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


def as_constant(value: Any) -> str | tuple[str, ...]:
    """What the driver made of an id, as a constant without a type, which PostgreSQL reads as the column's."""
    return tuple(map(id_as_text, value)) if isinstance(value, tuple) else id_as_text(value)
