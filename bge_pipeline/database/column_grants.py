"""Privileges on single columns: a column that takes another's place takes them over."""

from __future__ import annotations

from sqlalchemy import TextClause, text

from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable

# privilege_type is one of PostgreSQL's own words; a grant without a role is to PUBLIC, a keyword. A block in the server,
# so that the statement for review is the one that runs: which grants there are, only the database knows.
_COPY = """
DECLARE
  granted record;
BEGIN
  FOR granted IN
    SELECT acl.privilege_type AS privilege, r.rolname AS role, acl.is_grantable
    FROM pg_catalog.pg_attribute a CROSS JOIN pg_catalog.aclexplode(a.attacl) acl
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = acl.grantee
    WHERE a.attrelid = {table}::pg_catalog.regclass AND a.attname = {source} AND (acl.grantee = 0 OR r.oid IS NOT NULL)
  LOOP
    EXECUTE pg_catalog.format(
      'GRANT %s (%I) ON %s TO %s%s', granted.privilege, {column}, {table}::pg_catalog.regclass,
      COALESCE(pg_catalog.quote_ident(granted.role), 'PUBLIC'),
      CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
  END LOOP;
END
"""


def copy_column_grants_statement(target: TargetTable, source: str, column: str) -> TextClause:
    """The statement that gives `column` the privileges that roles, or everybody, hold on the column `source` by name.

    It must run while `source` is there: PostgreSQL 17 and later forget a column's grants when it is dropped.
    """
    body = _COPY.format(
        table=_constant(quote(target.schema, target.table)), source=_constant(source), column=_constant(column)
    )
    return with_values(text("DO :body"), body=body)


def _constant(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
