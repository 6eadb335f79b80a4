"""Which table of which database of which server a connection sees, however its URL spells it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bge_pipeline.database.target import TargetTable

_MAY_ASK = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"
_SERVER = "SELECT system_identifier::text FROM pg_control_system()"


@dataclass(frozen=True)
class TableIdentity:
    """A table, told apart from those of the same name elsewhere.

    Attributes:
        server: number that initdb gave the cluster, the same on its standbys; empty where the role may not ask.
        database: its name.
        table: schema and table, quoted.
    """

    server: str
    database: str
    table: str

    def is_same_as(self, other: TableIdentity) -> bool:
        """Whether both are one table, as far as their roles may tell."""
        is_one_server = not (self.server and other.server) or self.server == other.server
        return is_one_server and (self.database, self.table) == (other.database, other.table)

    def __str__(self) -> str:
        return f"{self.table} in database {self.database!r}" + (f" of server {self.server}" if self.server else "")


def identity_of(connection: Connection, target: TargetTable) -> TableIdentity:
    """The identity of `target`, which need not exist."""
    server = connection.execute(text(_SERVER)).scalar_one() if connection.execute(text(_MAY_ASK)).scalar_one() else ""
    return TableIdentity(
        server, str(connection.execute(text("SELECT current_database()::text")).scalar_one()), str(target)
    )
