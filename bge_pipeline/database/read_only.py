"""Whether the database takes changes at all: a standby does not, nor does a session that is read-only by default."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bge_pipeline.database.sql import quote
from bge_pipeline.errors import ReadOnlyDatabase

_QUERY = """
SELECT pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only')::boolean AS is_read_only,
       (SELECT source FROM pg_settings WHERE name = 'default_transaction_read_only') AS source,
       session_user::text AS role, current_database()::text AS database
"""


def read_only_fault(connection: Connection) -> tuple[str, str] | None:
    """Why nothing can be written, and what to do about it; None where writing is possible."""
    row = connection.execute(text(_QUERY)).one()
    if row.is_standby:
        return "this server is a replica (it is in recovery)", "set DATABASE_URL to the primary server"
    if not row.is_read_only:
        return None
    role, database = quote(row.role), quote(row.database)
    setting = "default_transaction_read_only"
    remedy = {
        "user": f"ALTER ROLE {role} RESET {setting};",
        "database": f"ALTER DATABASE {database} RESET {setting};",
        "global": f"ALTER ROLE ALL RESET {setting};",
        "database user": f"ALTER ROLE {role} IN DATABASE {database} RESET {setting};",
        "client": f"leave {setting} out of PGOPTIONS and of DATABASE_URL",
    }.get(row.source, f"set {setting} to off in the server's configuration")
    place = "connection" if row.source == "client" else row.source
    return f"transactions are read-only here: {setting} is on (set for the {place})", remedy


def require_writable(connection: Connection) -> None:
    """Refuse to begin on a database that takes no changes.

    Raises:
        ReadOnlyDatabase: names the reason.
    """
    fault = read_only_fault(connection)
    if fault is not None:
        reason, remedy = fault
        raise ReadOnlyDatabase(
            f"{reason}: expected a database that takes changes",
            state="nothing was changed",
            next_step=f"{remedy.rstrip(';')}, then run the same command again",
        )
