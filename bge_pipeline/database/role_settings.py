"""What a role's sessions find set on the server: search effort of applications that set none themselves, and how to change it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable

_DEFAULTS = {"ivfflat.probes": 1, "hnsw.ef_search": 40}
"""pgvector's own."""

# The most particular one wins: of the role in this database, of the role, of the database, of all roles.
_STORED = """
SELECT split_part(option, '=', 2) AS value, s.setrole <> 0 AS is_of_role
FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) option
WHERE lower(split_part(option, '=', 1)) = :name
  AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = COALESCE(CAST(:role AS text), current_user)))
  AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1
"""
# What this session's own role or database sets says nothing of another role's.
_CONFIGURED = """
SELECT CASE WHEN source IN ('database', 'user', 'database user') THEN boot_val ELSE reset_val END
FROM pg_settings WHERE name = :name
"""
_WHO = """
SELECT current_database() AS database, COALESCE(CAST(:role AS text), current_user) AS role,
       pg_has_role(datdba, 'USAGE') AS may_set_database
FROM pg_database WHERE datname = current_database()
"""


@dataclass(frozen=True)
class RoleSetting:
    """A run-time parameter as a new session of a role finds it.

    Attributes:
        name: `ivfflat.probes` or `hnsw.ef_search`.
        value: what it is.
        role: whose sessions.
        is_of_role: whether a setting of the role's own says so, which goes before the database's.
    """

    name: str
    value: int
    role: str
    is_of_role: bool


def read_role_setting(connection: Connection, target: TargetTable, name: str, role: str | None) -> RoleSetting:
    """What new sessions of `role` (None: of the role that is connected) find set, none of them having set it."""
    # pgvector's parameters are known to a session that has used a vector.
    connection.execute(target.sql("SELECT {embedding}::text FROM {table} LIMIT 1"))
    who = connection.execute(text(_WHO), {"role": role}).one()
    stored = connection.execute(text(_STORED), {"name": name, "role": role}).one_or_none()
    if stored is not None:
        return RoleSetting(name, int(stored.value), who.role, stored.is_of_role)
    value = connection.execute(text(_CONFIGURED), {"name": name}).scalar_one_or_none()
    return RoleSetting(name, int(value) if value else _DEFAULTS[name], who.role, is_of_role=False)


def role_setting_statement(connection: Connection, setting: RoleSetting, value: int, role: str | None) -> str:
    """The statement by which new sessions find `value`.

    It is for the database as a whole, unless a role was named, has a setting of its own, or may set nothing but its own.
    """
    who = connection.execute(text(_WHO), {"role": role}).one()
    database = quote(who.database)
    if role is None and who.may_set_database and not setting.is_of_role:
        return f"ALTER DATABASE {database} SET {setting.name} = {value}"
    return f"ALTER ROLE {quote(setting.role)} IN DATABASE {database} SET {setting.name} = {value}"
