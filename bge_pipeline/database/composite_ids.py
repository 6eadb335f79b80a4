"""Ids of several columns together, made of the kinds of each, and the kind of a table's ids by its key's columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from bge_pipeline.database.ids import (
    INTEGERS,
    UUIDS,
    ColumnId,
    ColumnIds,
    Id,
    IdKind,
    OtherIds,
    read_again,
    readable,
)

_FIXED_LENGTH: dict[str, ColumnIds] = {"smallint": INTEGERS, "integer": INTEGERS, "bigint": INTEGERS, "uuid": UUIDS}


@dataclass(frozen=True)
class CompositeIds(IdKind):
    """Tuples, in the order of the unique index.

    Which tuple comes next depends on the last column, of which nobody need be able to say, and rows come below the least one
    (of another tenant) as often as above: a range includes its upper end and the first one has no lower end.

    Attributes:
        kinds: of the columns, two or more.
    """

    kinds: tuple[ColumnIds, ...]

    as_it_travels = "{id_texts}"
    includes_upper = True

    @property
    def parts(self) -> tuple[ColumnIds, ...]:
        """The kinds of the columns."""
        return self.kinds

    def columns(self, ids: Sequence[Any]) -> list[Sequence[ColumnId]]:
        """The first value of every tuple, then the second, and so on."""
        return list(zip(*ids, strict=True)) if ids else [() for _ in self.kinds]

    def from_columns(self, columns: Sequence[Sequence[ColumnId]]) -> list[Id]:
        """Tuples."""
        return list(zip(*columns, strict=True))

    def plain(self, value: Any) -> Id:
        """A tuple, from an array of texts."""
        return tuple(kind.plain(part) for kind, part in zip(self.kinds, value, strict=True))

    def successor(self, value: Id) -> Id:
        """None that is asked for."""
        return value

    def key(self, lower: Id | None, upper: Id) -> str:
        """Both tuples with two tildes between: `~acme~17~~acme~250`."""
        return f"~{'' if lower is None else _joined(lower)}~~{_joined(upper)}"


_TUPLE = "[^~]+(?:~[^~]+)+"
_KEY = re.compile(rf"\d+~({_TUPLE})?~~({_TUPLE})")


def parse_composite(key: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]] | None:
    """The bounds in a partition key of several columns, as texts; None for a key of another kind."""
    match = _KEY.fullmatch(key)
    return (_split(match[1]) if match[1] else None, _split(match[2])) if match is not None else None


def kind_of(column_types: Sequence[tuple[str, str]]) -> IdKind:
    """The kind of a table's ids by type and operator of each column of the key, as `OtherIds` has both."""
    kinds = [
        _FIXED_LENGTH.get(column_type) or OtherIds(column_type, operator) for column_type, operator in column_types
    ]
    return kinds[0] if len(kinds) == 1 else CompositeIds(tuple(kinds))


def _split(part: str) -> tuple[str, ...]:
    return tuple(map(read_again, part.split("~")))


def _joined(value: Id) -> str:
    return "~".join(map(readable, cast("tuple[ColumnId, ...]", value)))
