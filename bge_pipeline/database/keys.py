"""Whether the id column tells every row from every other, and what to run where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.partition_keys import division_of, is_made_to_differ, ways_out
from bge_pipeline.database.sql import quote, shortened
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import TargetTableError

# An index is looked things up in by an operator of its family and by its collation. One of another than the column's serves
# neither the order of ranges nor the writer, and may hold apart what the column's collation calls equal.
_UNIQUE = """
SELECT c.relname AS name, i.indisprimary AS is_primary, i.indisvalid AS is_valid,
       pg_get_expr(i.indpred, i.indrelid) AS predicate,
       i.indexprs IS NOT NULL AS has_expressions,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k (number, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place) AS columns,
       i.indcollation[0] = column_.attcollation AS has_collation_of_column,
       EXISTS (SELECT FROM pg_opclass usual WHERE usual.opcdefault AND usual.opcfamily = o.opcfamily
               AND usual.opcmethod = o.opcmethod) AS has_usual_order
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_opclass o ON o.oid = i.indclass[0]
LEFT JOIN pg_attribute column_ ON column_.attrelid = i.indrelid AND column_.attnum = i.indkey[0]
WHERE i.indrelid = :oid AND i.indisunique
ORDER BY i.indisprimary DESC, c.relname
"""
ROW_NUMBER = "row_number"
"""Name of the column that a refusal proposes for a table without a key that is usable."""


@dataclass(frozen=True)
class _UniqueIndex:
    name: str
    is_primary: bool
    is_valid: bool
    predicate: str | None
    has_expressions: bool
    columns: Sequence[str]
    has_collation_of_column: bool | None
    has_usual_order: bool

    def fault(self, divided_by: Sequence[str] = ()) -> str | None:
        """Why rows cannot be found by it; None where they can, by its one column, or by its first.

        Args:
            divided_by: columns that are in it because PostgreSQL wants those there by which a table is partitioned.
        """
        faults = {
            "is not valid": not self.is_valid,
            f"holds only rows with {self.predicate}": self.predicate is not None,
            "is on an expression": self.has_expressions,
            f"is on {len(self.columns)} columns together ({', '.join(self.columns)})": any(
                name not in divided_by for name in self.columns[1:]
            ),
            "has another collation than the column": not self.has_collation_of_column,
            "has an operator class of another order than the column's": not self.has_usual_order,
        }
        return next((fault for fault, is_so in faults.items() if is_so), None)


def require_key(connection: Connection, target: TargetTable, oid: int, *, is_not_null: bool) -> None:
    """Refuse an id column that may be NULL or has no unique index of its own.

    Args:
        oid: of the table.
        is_not_null: whether the column is NOT NULL.

    Raises:
        TargetTableError: names what is there instead, and the statements that mend it.
    """
    indexes = [_UniqueIndex(**row._mapping) for row in connection.execute(text(_UNIQUE), {"oid": oid})]  # noqa: SLF001
    name = target.id_column
    has_key = any(index.fault() is None and list(index.columns) == [name] for index in indexes)
    division = division_of(connection, target)
    if division is not None and not has_key:
        leads = any(index.fault(division.columns) is None and index.columns[0] == name for index in indexes)
        has_key = leads and is_made_to_differ(connection, target, name)
    if has_key and is_not_null:
        return
    if has_key:
        raise TargetTableError(
            f"{target}: {name!r} may be NULL, and a row without an id cannot be found again: expected NOT NULL",
            state="nothing was changed",
            next_step=f"{_set_not_null(target, name)} (none of these holds the table for longer than an instant)",
        )
    other = next((i.columns[0] for i in indexes if i.fault() is None and i.columns), None)
    near = [f"{i.name} {i.fault()}" for i in indexes if i.fault() is not None]
    found = f" ({'; '.join(near)})" if near else ""
    alone = (
        "on that column alone"
        if division is None
        else f"on that column, which may have {division.definition} behind it"
    )
    raise TargetTableError(
        f"TARGET_ID_COLUMN {name!r} of {target} has no unique index of its own{found}: expected a primary key or a unique "
        f"index {alone}, over all rows, in the column's own order",
        state="nothing was changed",
        next_step=_ways_out(target, name, other, is_not_null=is_not_null)
        if division is None
        else ways_out(connection, target, division),
    )


def _ways_out(target: TargetTable, name: str, other: str | None, *, is_not_null: bool) -> str:
    own = f"CREATE UNIQUE INDEX CONCURRENTLY ON {target} ({quote(name)});"
    if not is_not_null:
        own += " " + _set_not_null(target, name)
    ways = [
        *([f"set TARGET_ID_COLUMN={other}, which has such an index"] if other is not None else []),
        f"where {name!r} is different in every row: {own}",
        f"without touching the application: {_add_row_numbers(target)}",
    ]
    return "one of\n" + "\n".join(f"  - {way}" for way in ways)


def _set_not_null(target: TargetTable, name: str) -> str:
    """NOT NULL without reading the table under a lock, by a constraint that is validated first."""
    constraint = quote(shortened(f"{target.table}_{name}_is_there"))
    return (
        f"ALTER TABLE {target} ADD CONSTRAINT {constraint} CHECK ({quote(name)} IS NOT NULL) NOT VALID; "
        f"ALTER TABLE {target} VALIDATE CONSTRAINT {constraint}; "
        f"ALTER TABLE {target} ALTER COLUMN {quote(name)} SET NOT NULL; "
        f"ALTER TABLE {target} DROP CONSTRAINT {constraint};"
    )


def _add_row_numbers(target: TargetTable) -> str:
    return (
        f"ALTER TABLE {target} ADD COLUMN {ROW_NUMBER} bigint GENERATED ALWAYS AS IDENTITY; "
        f"CREATE UNIQUE INDEX CONCURRENTLY ON {target} ({ROW_NUMBER}); then TARGET_ID_COLUMN={ROW_NUMBER} "
        "(the first statement writes the whole table anew under ACCESS EXCLUSIVE; docs/migration-guide.md has a longer way "
        "that does not)"
    )
