"""What the role may do: a migration alters the table and creates objects beside it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.sql import quote

_QUERY = """
SELECT current_user::text AS role, c.relowner::regrole::text AS owner,
       pg_has_role(current_user, c.relowner, 'USAGE') AS owns_table,
       has_schema_privilege(current_user, c.relnamespace, 'CREATE') AS may_create,
       has_table_privilege(current_user, c.oid, 'SELECT') AS may_select,
       has_table_privilege(current_user, c.oid, 'UPDATE') AS may_update
FROM pg_class c WHERE c.oid = :oid
"""


@dataclass(frozen=True)
class LackingPrivilege:
    """Something the role may not do, what it is needed for, and the statement that grants it."""

    need: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.need}; to grant it: {self.remedy}"


def missing_privileges(connection: Connection, table: TableDescription) -> list[LackingPrivilege]:
    """What the connected role lacks for a whole migration of `table`; empty if nothing."""
    row = connection.execute(text(_QUERY), {"oid": table.oid}).one()
    role, target = quote(row.role), table.target
    lacking = []
    if not row.owns_table:
        lacking.append(
            LackingPrivilege(
                f"only its owner may add columns, triggers and indexes to {target}", f"GRANT {row.owner} TO {role};"
            )
        )
    if not row.may_create:
        lacking.append(
            LackingPrivilege(
                f"quarantine table and trigger function are created in schema {target.schema!r}",
                f"GRANT CREATE ON SCHEMA {quote(target.schema)} TO {role};",
            )
        )
    if not (row.may_select and row.may_update):
        lacking.append(
            LackingPrivilege(f"the backfill reads and updates {target}", f"GRANT SELECT, UPDATE ON {target} TO {role};")
        )
    return lacking
