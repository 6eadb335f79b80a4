"""Publications: what logical replication carries of the target table, and what its subscribers and writers would meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.connection import server_version
from bge_pipeline.database.partitions import STORED
from bge_pipeline.database.row_key import OF_INDEX
from bge_pipeline.database.sql import quote
from bge_pipeline.errors import TargetTableError

Scope = Literal["all tables", "schema", "table"]
Identity = Literal["key", "full", "none"]

_POSTGRES_15 = 150_000
"""Column lists and publications of schemas came with PostgreSQL 15."""
_FIND = """
SELECT p.pubname AS name, p.pubupdate AS updates, {columns} AS columns,
       CASE WHEN p.puballtables THEN 'all tables' WHEN {by_schema} THEN 'schema' ELSE 'table' END AS scope,
       EXISTS (SELECT FROM pg_class WHERE oid = :oid AND relkind = 'p') AND NOT p.pubviaroot AS by_partitions
FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = :oid
WHERE p.puballtables OR r.oid IS NOT NULL OR {by_schema} OR {by_partition}
ORDER BY p.pubname
"""
_BY_PARTITION = """
EXISTS (SELECT FROM pg_publication_rel o JOIN pg_partition_tree(:oid) t ON t.relid = o.prrelid WHERE o.prpubid = p.oid)
"""
_PARTS_OF_15 = {
    "by_partition": _BY_PARTITION,
    "columns": "r.prattrs::int2[]",
    "by_schema": "EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_class c ON c.relnamespace = s.pnnspid "
    "WHERE s.pnpubid = p.oid AND c.oid = :oid)",
}
_PARTS_OF_14 = {"by_partition": _BY_PARTITION, "columns": "NULL", "by_schema": "false"}
# The rows that are logged are those of partitions: what holds for a partitioned table itself does not count.
_IDENTITIES = f"""
SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid,
       CASE WHEN c.relreplident = 'f' THEN 'full'
            WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisvalid AND indimmediate
                         AND (c.relreplident = 'd' AND indisprimary OR c.relreplident = 'i' AND indisreplident)) THEN 'key'
            ELSE 'none' END AS identity
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({STORED}) ORDER BY 1, 2
"""
# The index by which a row is found again anyway: unique, on the key alone, and NOT NULL.
_KEY_INDEX = f"""
SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
WHERE i.indrelid = :oid AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND {OF_INDEX} = CAST(:columns AS text[])
ORDER BY i.indisprimary DESC, x.relname LIMIT 1
"""
_SLOTS = """
SELECT slot_name::text FROM pg_replication_slots
WHERE slot_type = 'logical' AND NOT temporary AND database = current_database() ORDER BY 1
"""
_SUBSCRIPTIONS = """
SELECT DISTINCT s.subname::text FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
WHERE r.srrelid = :oid OR r.srrelid IN (SELECT relid FROM pg_partition_tree(:oid)) ORDER BY 1
"""


@dataclass(frozen=True)
class Publication:
    """A publication that carries the target table.

    Attributes:
        scope: what it lists: every table, the table's schema, or the table itself.
        updates: whether it publishes updates, and so asks for a replica identity.
        columns: numbers of the columns that it is limited to; None: all there are, and will be.
        by_partitions: rows are sent as those of the partitions, not of the partitioned table.
    """

    name: str
    scope: Scope
    updates: bool
    columns: frozenset[int] | None
    by_partitions: bool = False

    @property
    def takes_new_tables(self) -> bool:
        """Whether a table that is made in the schema is published without being listed."""
        return self.scope != "table"

    def __str__(self) -> str:
        return f"publication {self.name} ({'the whole schema' if self.scope == 'schema' else self.scope})"


@dataclass(frozen=True)
class Replication:
    """Logical replication as the target table meets it.

    Attributes:
        publications: those that carry the table.
        identity: by what a subscriber finds a row again: a key, the whole old row, or nothing, so that every UPDATE of a
            table whose updates are published fails.
        slots: logical replication slots of the database, whose readers get every row that is written.
        subscriptions: those that fill the table from elsewhere.
    """

    publications: tuple[Publication, ...]
    identity: Identity
    slots: tuple[str, ...]
    subscriptions: tuple[str, ...]

    @property
    def forbids_updates(self) -> str | None:
        """The publication because of which PostgreSQL refuses every UPDATE of the table; None if it does not."""
        publishing = [publication.name for publication in self.publications if publication.updates]
        return publishing[0] if publishing and self.identity == "none" else None

    @property
    def takes_new_tables(self) -> bool:
        """Whether a table that is made beside the target is published too."""
        return any(publication.takes_new_tables for publication in self.publications)


def find_publications(connection: Connection, table: TableDescription) -> tuple[Publication, ...]:
    """The publications that carry the table, by name."""
    parts = _PARTS_OF_15 if server_version(connection) >= _POSTGRES_15 else _PARTS_OF_14
    return tuple(
        Publication(
            row.name, row.scope, row.updates, None if row.columns is None else frozenset(row.columns), row.by_partitions
        )
        for row in connection.execute(text(_FIND.format(**parts)), {"oid": table.oid})
    )


def find_replication(connection: Connection, table: TableDescription) -> Replication:
    """Publications of the table, its replica identity, and the slots of the database."""
    identities = _identities(connection, table)
    return Replication(
        publications=find_publications(connection, table),
        identity=next((i for i in ("none", "full") if any(i == row.identity for row in identities)), "key"),
        slots=tuple(connection.execute(text(_SLOTS)).scalars()),
        subscriptions=tuple(connection.execute(text(_SUBSCRIPTIONS), {"oid": table.oid}).scalars()),
    )


def updates_fault(connection: Connection, table: TableDescription, replication: Replication) -> tuple[str, str] | None:
    """Why PostgreSQL refuses every UPDATE of the table, and the statement that mends it; None where it does not."""
    publication = replication.forbids_updates
    if publication is None:
        return None
    lacking = {quote(row.schema, row.name): row.oid for row in _identities(connection, table) if row.identity == "none"}
    remedies = []
    for name, oid in lacking.items():
        values = {"oid": oid, "columns": list(table.target.id_columns)}
        index = connection.execute(text(_KEY_INDEX), values).scalar_one_or_none()
        remedies.append(
            f"ALTER TABLE {name} REPLICA IDENTITY {'FULL' if index is None else f'USING INDEX {quote(index)}'};"
        )
    reason = (
        f"{', '.join(lacking)} has no replica identity, and publication {publication} publishes updates: "
        "PostgreSQL refuses every UPDATE"
    )
    return reason, " ".join(remedies)


def _identities(connection: Connection, table: TableDescription) -> list[Any]:
    """The replica identity of every table that holds rows of it."""
    return list(connection.execute(text(_IDENTITIES), {"table": str(table.target)}))


def require_updates(connection: Connection, table: TableDescription) -> None:
    """Refuse to begin on a table whose rows cannot be updated.

    Raises:
        TargetTableError: names the publication, and the statement that mends it.
    """
    fault = updates_fault(connection, table, find_replication(connection, table))
    if fault is not None:
        raise TargetTableError(fault[0], state="nothing was changed", next_step=fault[1])
