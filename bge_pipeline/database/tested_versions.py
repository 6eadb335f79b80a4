"""The versions of PostgreSQL and pgvector on which this project's tests ran, and what to say of a server that has others."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.catalog import pgvector_version, version_numbers
from bge_pipeline.database.connection import server_version

POSTGRES = (15, 18)
"""The first and the last major version."""
PGVECTOR = ((0, 5), (0, 8))


def untested_versions(connection: Connection) -> str | None:
    """What the server has that no test ran on, in words; None where all of it was tested."""
    postgres = server_version(connection) // 10_000
    pgvector = pgvector_version(connection)
    found = []
    if not POSTGRES[0] <= postgres <= POSTGRES[1]:
        found.append(f"PostgreSQL {postgres}")
    if pgvector is not None and not PGVECTOR[0] <= version_numbers(pgvector)[:2] <= PGVECTOR[1]:
        found.append(f"pgvector {pgvector}")
    if not found:
        return None
    first, last = (".".join(map(str, version)) for version in PGVECTOR)
    return (
        f"{' and '.join(found)}: the tests of this project ran on PostgreSQL {POSTGRES[0]} to {POSTGRES[1]} with pgvector "
        f"{first} to {last} (docs/versions.md); try the migration on a copy first"
    )
