"""What the role may do: a migration alters the table, creates objects beside it and updates every row."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.connection import server_version
from bge_pipeline.database.partitions import STORED
from bge_pipeline.database.read_only import require_writable
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.user_triggers import may_skip_triggers
from bge_pipeline.errors import MissingPrivilege

_QUERY = """
SELECT current_user::text AS role, o.rolname AS owner, current_database()::text AS database,
       EXISTS (SELECT FROM pg_roles m WHERE pg_has_role(c.relowner, m.oid, 'MEMBER')
               AND (m.rolsuper OR m.rolcreaterole OR m.rolreplication OR m.rolbypassrls)) AS owner_is_mighty,
       pg_has_role(c.relowner, 'USAGE') AS owns_table,
       has_schema_privilege(c.relnamespace, 'USAGE') AS uses_schema,
       has_schema_privilege(c.relnamespace, 'CREATE') AS creates_in_schema,
       has_table_privilege(c.oid, 'SELECT') AS selects,
       has_table_privilege(c.oid, 'UPDATE')
         OR has_any_column_privilege(c.oid, 'UPDATE') AND has_column_privilege(c.oid, :column, 'UPDATE') AS updates,
       has_database_privilege(current_database(), 'TEMPORARY') AS makes_temporary_tables,
       row_security_active(c.oid) AS rows_hidden,
       e.nspname AS vector_schema, has_schema_privilege(e.oid, 'USAGE') AS uses_vector,
       q.oid IS NULL OR has_table_privilege(q.oid, 'SELECT') AND has_table_privilege(q.oid, 'INSERT')
         AND has_table_privilege(q.oid, 'UPDATE') AND has_table_privilege(q.oid, 'DELETE') AS quarantines,
       j.oid IS NULL OR has_table_privilege(j.oid, 'SELECT') AND has_table_privilege(j.oid, 'INSERT') AS keeps_journal
FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner
JOIN pg_extension x ON x.extname = 'vector' JOIN pg_namespace e ON e.oid = x.extnamespace
LEFT JOIN pg_class q ON q.relname = :quarantine AND q.relnamespace = c.relnamespace AND q.relkind = 'r'
LEFT JOIN pg_class j ON j.relname = :journal AND j.relnamespace = c.relnamespace AND j.relkind = 'r'
WHERE c.oid = :oid
"""

# Vectors are written, and indexes built, on each partition itself, for which rights on the whole table count nothing.
_PARTITIONS = f"""
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, o.rolname AS owner, n.nspname::text AS schema,
       pg_has_role(c.relowner, 'USAGE') AS owned, row_security_active(c.oid) AS rows_hidden,
       has_schema_privilege(n.oid, 'USAGE') AS schema_used, has_schema_privilege(n.oid, 'CREATE') AS creates_in_schema,
       has_table_privilege(c.oid, 'SELECT') AND (has_table_privilege(c.oid, 'UPDATE')
         OR has_any_column_privilege(c.oid, 'UPDATE') AND has_column_privilege(c.oid, :column, 'UPDATE')) AS filled
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles o ON o.oid = c.relowner
WHERE c.oid IN ({STORED}) AND c.relispartition ORDER BY 1
"""

_POSTGRES_15 = 150_000
"""Rights on single settings came with PostgreSQL 15."""


@dataclass(frozen=True)
class LackingPrivilege:
    """Something the role may not do, what it is needed for, and the statement that grants it."""

    need: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.need}; to grant it: {self.remedy}"


def owns(connection: Connection, target: TargetTable) -> bool:
    """Whether the role is the owner of the table and its partitions or may act as it, and so may index them."""
    statement = text(
        f"SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class WHERE oid = CAST(:table AS regclass) OR oid IN ({STORED})"
    )
    return bool(connection.execute(statement, {"table": str(target)}).scalar_one())


def missing_privileges(
    connection: Connection,
    table: TableDescription,
    column: str | None = None,
    *,
    alters: bool = True,
    skips_triggers: bool = False,
) -> list[LackingPrivilege]:
    """What the connected role lacks, empty if nothing.

    Args:
        connection: as the role in question.
        table: the target table.
        column: the column to be filled; None: the embedding column.
        alters: whether the table is to be altered (expand, swap, rollback, retire) or only filled (backfill).
        skips_triggers: whether the backfill is to leave the application's triggers out (BACKFILL_TRIGGERS=skip).
    """
    target = table.target
    values = {
        "oid": table.oid,
        "column": column or target.embedding_column,
        "quarantine": target.quarantine_table,
        "journal": target.journal_table,
    }
    row = connection.execute(text(_QUERY), values).one()
    role, schema, database = quote(row.role), quote(target.schema), quote(row.database)
    quarantine = target.quarantine
    checks = [
        (
            row.owns_table or not alters,
            f"only the owner of {target}, {row.owner!r}, may add columns, triggers and indexes to it",
            # Membership in a role that administers the server would be far more than is needed.
            f"ALTER TABLE {target} OWNER TO {role};" if row.owner_is_mighty else f"GRANT {quote(row.owner)} TO {role};",
        ),
        (row.uses_schema, f"{target} is in schema {schema}", f"GRANT USAGE ON SCHEMA {schema} TO {role};"),
        (
            row.creates_in_schema or not alters,
            f"quarantine table, trigger function and indexes are created in schema {schema}",
            f"GRANT CREATE ON SCHEMA {schema} TO {role};",
        ),
        (
            row.uses_vector,
            f"the vector type is in schema {quote(row.vector_schema)}",
            f"GRANT USAGE ON SCHEMA {quote(row.vector_schema)} TO {role};",
        ),
        (
            row.selects and row.updates,
            f"the backfill reads and updates {target}",
            f"GRANT SELECT, UPDATE ON {target} TO {role};",
        ),
        (
            row.makes_temporary_tables,
            "the backfill stages vectors in a temporary table",
            f"GRANT TEMPORARY ON DATABASE {database} TO {role};",
        ),
        (
            row.quarantines,
            f"rows that cannot be embedded are recorded in {quarantine}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {quarantine} TO {role};",
        ),
        (
            row.keeps_journal,
            f"every phase is recorded in {target.journal}",
            f"GRANT SELECT, INSERT, UPDATE ON {target.journal} TO {role};",
        ),
        (
            not row.rows_hidden,
            f"row level security hides rows of {target} from this role, which would never be embedded",
            f"ALTER ROLE {role} BYPASSRLS;",
        ),
        (
            not skips_triggers or may_skip_triggers(connection),
            "BACKFILL_TRIGGERS=skip sets session_replication_role",
            f"GRANT SET ON PARAMETER session_replication_role TO {role};"
            if server_version(connection) >= _POSTGRES_15
            else f"ALTER ROLE {role} SUPERUSER; (before PostgreSQL 15 no other role may; or BACKFILL_TRIGGERS=fire)",
        ),
    ]
    found = [LackingPrivilege(need, remedy) for is_there, need, remedy in checks if not is_there]
    if table.is_partitioned:
        found += _missing_on_partitions(connection, target, values["column"], role, alters=alters)
    return found


def _missing_on_partitions(
    connection: Connection, target: TargetTable, column: object, role: str, *, alters: bool
) -> list[LackingPrivilege]:
    """The same for the partitions; `role` is quoted."""
    rows = connection.execute(text(_PARTITIONS), {"table": str(target), "column": column}).all()
    owners = {row.owner: row.name for row in rows if alters and not row.owned}
    schemas = {row.schema for row in rows if not (row.schema_used and (row.creates_in_schema or not alters))}
    unfilled = ", ".join(row.name for row in rows if not row.filled)
    hidden = ", ".join(row.name for row in rows if row.rows_hidden)
    lacking = [
        (f"only the owner of the partition {name}, {owner!r}, may index it", f"GRANT {quote(owner)} TO {role};")
        for owner, name in owners.items()
    ]
    rights = "USAGE, CREATE" if alters else "USAGE"
    lacking += [
        (f"partitions of {target} are in schema {quote(name)}", f"GRANT {rights} ON SCHEMA {quote(name)} TO {role};")
        for name in sorted(schemas - {target.schema})
    ]
    if unfilled:
        need = f"the backfill reads and updates each partition of {target} itself"
        lacking.append((need, f"GRANT SELECT, UPDATE ON {unfilled} TO {role};"))
    if hidden:
        need = f"row level security hides rows of {hidden} from this role, which would never be embedded"
        lacking.append((need, f"ALTER ROLE {role} BYPASSRLS;"))
    return [LackingPrivilege(need, remedy) for need, remedy in lacking]


def require_privileges(
    connection: Connection,
    table: TableDescription,
    column: str | None = None,
    *,
    alters: bool = True,
    skips_triggers: bool = False,
) -> None:
    """Refuse to begin what the role could not finish, or the database does not take.

    Raises:
        ReadOnlyDatabase: it is a replica, or read-only by default.
        MissingPrivilege: names everything that is lacking, with the statements that grant it.
    """
    require_writable(connection)
    lacking = missing_privileges(connection, table, column, alters=alters, skips_triggers=skips_triggers)
    if lacking:
        role = connection.execute(text("SELECT current_user")).scalar_one()
        raise MissingPrivilege(
            f"the role {role!r} may not do this: {'; '.join(privilege.need for privilege in lacking)}",
            state="nothing was changed",
            next_step=f"as the owner or a superuser: {' '.join(privilege.remedy for privilege in lacking)}",
        )
