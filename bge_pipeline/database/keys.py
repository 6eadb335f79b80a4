"""Whether the id column, or several together, tells every row from every other, and what to run where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.partition_keys import Division, division_of, is_made_to_differ, ways_out
from bge_pipeline.database.row_key import RowKey
from bge_pipeline.database.sql import quote, shortened
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import TargetTableError
from bge_pipeline.settings.column_list import join_columns

# An index is looked things up in by an operator of its family and by its collation. One of another than the column's serves
# neither the order of ranges nor the writer, and may hold apart what the column's collation calls equal. Read from either end,
# one of (a, b DESC) is in no order that `ORDER BY a, b` or `(a, b) > (1, 2)` means: beyond its first column it serves neither.
_UNIQUE = """
SELECT c.relname AS name, i.indisvalid AS is_valid, pg_get_expr(i.indpred, i.indrelid) AS predicate,
       i.indexprs IS NOT NULL AS has_expressions, k.columns, k.nullable, k.has_own_collations, k.has_usual_order,
       k.has_one_direction
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid CROSS JOIN LATERAL (
  SELECT coalesce(array_agg(a.attname::text ORDER BY k.place) FILTER (WHERE a.attnum > 0), '{}') AS columns,
         coalesce(array_agg(a.attname::text ORDER BY k.place) FILTER (WHERE NOT a.attnotnull), '{}') AS nullable,
         bool_and(k.collated = a.attcollation) AS has_own_collations,
         bool_and(EXISTS (SELECT FROM pg_opclass o JOIN pg_opclass usual
                          ON usual.opcfamily = o.opcfamily AND usual.opcmethod = o.opcmethod
                          WHERE o.oid = k.class AND usual.opcdefault)) AS has_usual_order,
         count(DISTINCT k.sorted) = 1 AS has_one_direction
  FROM unnest(i.indkey[0:i.indnkeyatts - 1], i.indcollation[0:i.indnkeyatts - 1], i.indclass[0:i.indnkeyatts - 1],
              i.indoption[0:i.indnkeyatts - 1]) WITH ORDINALITY k (number, collated, class, sorted, place)
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
) k
WHERE i.indrelid = :oid AND i.indisunique
ORDER BY i.indisprimary DESC, i.indnkeyatts, c.relname
"""
ROW_NUMBER = "row_number"
"""Name of the column that a refusal proposes for a table without a key that is usable."""


@dataclass(frozen=True)
class _UniqueIndex:
    name: str
    is_valid: bool
    predicate: str | None
    has_expressions: bool
    columns: Sequence[str]
    nullable: Sequence[str]
    has_own_collations: bool | None
    has_usual_order: bool
    has_one_direction: bool

    def fault(self, *, of_first_column: bool = False) -> str | None:
        """Why rows cannot be found by its columns, or by the first of them; None where they can."""
        faults = {
            "is not valid": not self.is_valid,
            f"holds only rows with {self.predicate}": self.predicate is not None,
            "is on an expression": self.has_expressions,
            "has another collation than the column": not self.has_own_collations,
            "has an operator class of another order than the column's": not self.has_usual_order,
            "sorts its columns in different directions": not (self.has_one_direction or of_first_column),
        }
        return next((fault for fault, is_so in faults.items() if is_so), None)

    def differs_from(self, names: tuple[str, ...]) -> str | None:
        """Why rows cannot be found by it and the columns of these names; None where it is on others."""
        fault = self.fault()
        if fault is not None or not set(names) & set(self.columns):
            return fault
        together = f"{len(self.columns)} columns together" if len(self.columns) > 1 else "one column"
        return f"is on {together} ({', '.join(self.columns)})"


def usable_keys(connection: Connection, oid: int) -> list[tuple[str, ...]]:
    """Columns by which every row of a table can be found: what TARGET_ID_COLUMN may name, the primary key first."""
    return [tuple(i.columns) for i in _unique_indexes(connection, oid) if i.fault() is None and not i.nullable]


def key_advice(connection: Connection, target: TargetTable, oid: int) -> str:
    """What to do about a TARGET_ID_COLUMN that the table does not have."""
    return _one_of(_ways(target, _unique_indexes(connection, oid)))


def require_key(connection: Connection, target: TargetTable, oid: int, *, nullable: Sequence[str]) -> None:
    """Refuse id columns that may be NULL or have no unique index of their own.

    Args:
        oid: of the table.
        nullable: those of the id columns that are not NOT NULL.

    Raises:
        TargetTableError: names what is there instead, and the statements that mend it.
    """
    names = target.id_columns
    indexes = _unique_indexes(connection, oid)
    division = division_of(connection, target)
    has_key = any(index.fault() is None and tuple(index.columns) == names for index in indexes)
    if not has_key and not _is_first_of_a_key(connection, target, indexes, division):
        raise _no_index(connection, target, indexes, nullable, division)
    if nullable:
        raise TargetTableError(
            f"{target}: {', '.join(map(repr, nullable))} may be NULL, and a row without an id cannot be found again: "
            "expected NOT NULL",
            state="nothing was changed",
            next_step=f"{_set_not_null(target, nullable)} (none of these holds the table for longer than an instant)",
        )


def _unique_indexes(connection: Connection, oid: int) -> list[_UniqueIndex]:
    return [_UniqueIndex(**row._mapping) for row in connection.execute(text(_UNIQUE), {"oid": oid})]  # noqa: SLF001


def _is_first_of_a_key(
    connection: Connection, target: TargetTable, indexes: Sequence[_UniqueIndex], division: Division | None
) -> bool:
    """Whether ids are made to differ, and an index is on the id with nothing behind it but what divides the table."""
    if division is None or len(target.id_columns) > 1:
        return False
    (name,) = target.id_columns
    leads = any(
        index.fault(of_first_column=True) is None
        and index.columns[0] == name
        and set(index.columns[1:]) <= set(division.columns)
        for index in indexes
    )
    return leads and is_made_to_differ(connection, target, name)


def _no_index(
    connection: Connection,
    target: TargetTable,
    indexes: Sequence[_UniqueIndex],
    nullable: Sequence[str],
    division: Division | None,
) -> TargetTableError:
    names = target.id_columns
    near = [f"{index.name} {why}" for index in indexes if (why := index.differs_from(names)) is not None]
    found = f" ({'; '.join(near)})" if near else ""
    if division is None:
        together = "that column alone" if len(names) == 1 else "these columns together, in this order"
        ways = _ways(target, indexes, [_own_index(target, nullable)])
    else:
        together = f"that column, which may have {division.definition} behind it"
        ways = [*_keys_that_are_there(indexes), *ways_out(connection, target, division)]
    return TargetTableError(
        f"TARGET_ID_COLUMN {join_columns(names)!r} of {target} has no unique index of its own{found}: expected a primary key "
        f"or a unique index on {together}, over all rows, in the column's own order",
        state="nothing was changed",
        next_step=_one_of(ways),
    )


def _own_index(target: TargetTable, nullable: Sequence[str]) -> str:
    names = target.id_columns
    statements = f"CREATE UNIQUE INDEX CONCURRENTLY ON {target} ({RowKey(names).listed()});"
    if nullable:
        statements += " " + _set_not_null(target, nullable)
    said = "is" if len(names) == 1 else "are together"
    return f"where {join_columns(names)!r} {said} different in every row: {statements}"


def _ways(target: TargetTable, indexes: Sequence[_UniqueIndex], own: Sequence[str] = ()) -> list[str]:
    """By the key that is there; else by `own`, by one that lacks no more than NOT NULL, or by numbers of the rows."""
    if there := _keys_that_are_there(indexes):
        return [*there, *own]
    sound = [index for index in indexes if index.fault() is None]
    ways = [*own]
    if sound:
        names = join_columns(sound[0].columns)
        not_null = _set_not_null(target, sound[0].nullable)
        ways.append(f"where {names!r} is never NULL: {not_null} then TARGET_ID_COLUMN={names}")
    return [*ways, f"without touching the application: {_add_row_numbers(target)}"]


def _keys_that_are_there(indexes: Sequence[_UniqueIndex]) -> list[str]:
    usable = [index for index in indexes if index.fault() is None and not index.nullable]
    return [f"set TARGET_ID_COLUMN={join_columns(usable[0].columns)}, which has such an index"] if usable else []


def _one_of(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else "one of\n" + "\n".join(f"  - {way}" for way in ways)


def _set_not_null(target: TargetTable, names: Sequence[str]) -> str:
    """NOT NULL without reading the table under a lock, by a constraint that is validated first."""
    statements = []
    for name in names:
        constraint = quote(shortened(f"{target.table}_{name}_is_there"))
        statements += [
            f"ALTER TABLE {target} ADD CONSTRAINT {constraint} CHECK ({quote(name)} IS NOT NULL) NOT VALID;",
            f"ALTER TABLE {target} VALIDATE CONSTRAINT {constraint};",
            f"ALTER TABLE {target} ALTER COLUMN {quote(name)} SET NOT NULL;",
            f"ALTER TABLE {target} DROP CONSTRAINT {constraint};",
        ]
    return " ".join(statements)


def _add_row_numbers(target: TargetTable) -> str:
    return (
        f"ALTER TABLE {target} ADD COLUMN {ROW_NUMBER} bigint GENERATED ALWAYS AS IDENTITY; "
        f"CREATE UNIQUE INDEX CONCURRENTLY ON {target} ({ROW_NUMBER}); then TARGET_ID_COLUMN={ROW_NUMBER} "
        "(the first statement writes the whole table anew under ACCESS EXCLUSIVE; docs/migration-guide.md has a longer way "
        "that does not)"
    )
