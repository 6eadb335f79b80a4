"""Privileges on single columns: a column that takes another's place takes them over."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import Column, TableDescription

_COLUMN_GRANTS = """
SELECT acl.privilege_type, r.rolname AS role, acl.is_grantable
FROM pg_attribute a CROSS JOIN aclexplode(a.attacl) acl LEFT JOIN pg_roles r ON r.oid = acl.grantee
WHERE a.attrelid = :oid AND a.attnum = :number AND (acl.grantee = 0 OR r.oid IS NOT NULL)
"""


def copy_column_grants(connection: Connection, table: TableDescription, source: Column, column: str) -> None:
    """Give `column` the privileges that roles, or everybody, hold on the column `source` by name."""
    for grant in connection.execute(text(_COLUMN_GRANTS), {"oid": table.oid, "number": source.number}).all():
        # privilege_type is one of PostgreSQL's own words; a grant without a role is to PUBLIC, a keyword.
        grantee = "PUBLIC" if grant.role is None else "{role}"
        option = " WITH GRANT OPTION" if grant.is_grantable else ""
        connection.execute(
            table.target.sql(
                f"GRANT {grant.privilege_type} ({{column}}) ON {{table}} TO {grantee}{option}",
                column=column,
                role=grant.role or "",
            )
        )
