"""What a migration means to each function of the application that names the column, and the statement that mends it. In words."""

from __future__ import annotations

from collections.abc import Sequence

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.functions import ReadingFunction
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.vector_type import VectorType


def told_functions(
    functions: Sequence[ReadingFunction], target: TargetTable, old: Column, vector: VectorType
) -> tuple[str, ...]:
    """Each function with what becomes of it at expand and at the swap.

    Args:
        functions: those found.
        target: the table.
        old: the column that search reads, before the swap.
        vector: the new column's type.
    """
    told = (_told(function, target, old, vector.element, vector.dimensions) for function in functions)
    return tuple(one for one in told if one is not None)


def told_unfit(
    functions: Sequence[ReadingFunction], target: TargetTable, old: Column, element: str, dimensions: int | None
) -> tuple[str, ...]:
    """Those alone that name the column and fail from the swap on as they stand.

    Args:
        functions, target, old: as above.
        element, dimensions: of the new column.
    """
    named = [
        function for function in functions if function.reads and _clauses(function, target, old, element, dimensions)
    ]
    return tuple(str(_told(function, target, old, element, dimensions)) for function in named)


def _told(
    function: ReadingFunction, target: TargetTable, old: Column, element: str, dimensions: int | None
) -> str | None:
    """None where it is only of the type that stays."""
    clauses = _clauses(function, target, old, element, dimensions)
    if function.reads:
        clauses.insert(0, _callers(old, dimensions))
    return f"function {function.name} {'. It '.join(clauses)}" if clauses else None


def _callers(old: Column, dimensions: int | None) -> str:
    named = f"names {old.name!r}, and so reads the new vectors from the swap on, the old ones after a rollback"
    if old.dimensions == dimensions:
        return f"{named}: vectors that it is given have to be that model's, as both have {dimensions} dimensions"
    return f"{named}: vectors that it is given have {dimensions} dimensions then; others fail with 'different vector dimensions'"


def _clauses(
    function: ReadingFunction, target: TargetTable, old: Column, element: str, dimensions: int | None
) -> list[str]:
    """What is wrong with it, each as the end of a sentence about it."""
    found = []
    if function.is_by_position:
        found.append(
            f"returns columns of {target} by their position, and fails as soon as expand adds one: let it name the columns "
            "that it returns, and declare them (RETURNS TABLE)"
        )
    statement = function.mending_statement(old)
    if statement is not None and old.dimensions != dimensions:
        why = []
        if function.is_pinned:
            why.append(f"says {old.type_name}({old.dimensions}), and fails with vectors of {dimensions} dimensions")
        if function.is_typed:
            why.append(f"declares {old.name}%TYPE, which sessions that have run it keep at {old.dimensions} dimensions")
        found.append(f"{' and '.join(why)}. To have it fit both, before the swap: {statement}")
    if function.reads and function.returns_vectors and old.type_name != element:
        found.append(
            f"is declared to return {old.type_name}, and the new column is {element}: let it cast, {old.name}::{old.type_name}"
        )
    return found
