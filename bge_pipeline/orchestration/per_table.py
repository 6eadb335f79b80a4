"""Definitions that each table of the code location has: written once, made for a table with its names and resources."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Generic, TypeVar

from bge_pipeline.orchestration.served import ServedTable

Definition = TypeVar("Definition")

_RESOURCES = ("migration", "embeddings")
_TABLE = "table"


class PerTable(Generic[Definition]):
    """A definition of Dagster's for each table that is asked for, always the same one for the same table."""

    def __init__(self, make: Callable[[ServedTable], Definition]) -> None:
        self._make = make
        self._made: dict[ServedTable, Definition] = {}

    def of(self, table: ServedTable) -> Definition:
        """The table's own."""
        if table not in self._made:
            self._made[table] = self._make(table)
        return self._made[table]


def per_table(
    decorator: Callable[[ServedTable], Callable[[Callable[..., Any]], Definition]],
) -> Callable[[Callable[..., Any]], PerTable[Definition]]:
    """Decorate a function for each table.

    The function may take `table`, which is filled in, and `migration` and `embeddings`, which are the table's resources.

    Args:
        decorator: gives Dagster's decorator for a table.
    """

    def decorate(function: Callable[..., Any]) -> PerTable[Definition]:
        return PerTable(lambda table: decorator(table)(_of_table(function, table)))

    return decorate


def _of_table(function: Callable[..., Any], table: ServedTable) -> Callable[..., Any]:
    """The function with the signature that Dagster reads its resources from."""
    signature = inspect.signature(function)
    own = {table.called(name): name for name in _RESOURCES if name in signature.parameters}
    filled = {_TABLE: table} if _TABLE in signature.parameters else {}

    @wraps(function)
    def of_table(*arguments: Any, **values: Any) -> Any:
        return function(*arguments, **{own.get(name, name): value for name, value in values.items()}, **filled)

    parameters = [
        parameter.replace(name=table.called(name)) if name in _RESOURCES else parameter
        for name, parameter in signature.parameters.items()
        if name != _TABLE
    ]
    shown = signature.replace(parameters=parameters)
    of_table.__signature__ = shown  # type: ignore[attr-defined]
    of_table.__annotations__ = {name: parameter.annotation for name, parameter in shown.parameters.items()} | {
        "return": signature.return_annotation
    }
    return of_table
