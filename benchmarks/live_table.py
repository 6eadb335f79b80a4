"""The tables of `benchmarks.live`: one for each size and old index, and a fresh copy of it for each turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psycopg2
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.settings import load_settings

_OLD_INDEX = {
    "ivfflat": "USING ivfflat (embedding vector_cosine_ops) WITH (lists = {lists})",
    "hnsw": "USING hnsw (embedding vector_cosine_ops)",
}
_SIZES = """
SELECT pg_relation_size(c.oid) AS heap, COALESCE(pg_total_relation_size(NULLIF(c.reltoastrelid, 0)), 0) AS toast,
       pg_indexes_size(c.oid) AS indexes
FROM pg_class c WHERE c.oid = 'documents'::regclass
"""
_UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'documents'::regclass"


@dataclass(frozen=True)
class Sizes:
    """Bytes of the heap, of what is kept out of line with its index, and of the table's indexes."""

    heap_bytes: int
    toast_bytes: int
    index_bytes: int


@contextmanager
def make_template(server: URL, rows: int, old_index: str, folder: Path) -> Iterator[str]:
    """A database with the table `documents (id, content, embedding vector(1536), touched)`; yields its name."""
    name = f"live_{old_index}_{rows}"
    _administer(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    _administer(server, f"CREATE DATABASE {name}")
    settings = load_settings(bge_pipeline_home=folder, embedding_model="hashing")
    with Database(server.set(database=name)) as database:
        create_demo_table(database, settings, rows, with_index=False)
        with database.autocommit() as connection:
            for statement in (
                "CREATE TABLE documents (id bigserial PRIMARY KEY, content text, embedding vector(1536), touched timestamptz)",
                "INSERT INTO documents (content, embedding) SELECT text, embedding FROM segments ORDER BY id",
                "DROP TABLE segments, sources",
                "SET maintenance_work_mem = '2GB'",
                f"CREATE INDEX documents_old ON documents {_OLD_INDEX[old_index].format(lists=max(1, rows // 1_000))}",
                "VACUUM ANALYZE documents",
            ):
                connection.execute(text(statement))
            connection.invalidate()
    try:
        yield name
    finally:
        _administer(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class Clone:
    """A copy of the template's database for one turn; dropped at the end."""

    def __init__(self, server: URL, template: str) -> None:
        self._server = server
        self._template = template
        self._name = f"{template}_turn"

    def __enter__(self) -> Clone:
        _administer(self._server, f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)")
        _administer(self._server, f"CREATE DATABASE {self._name} TEMPLATE {self._template}")
        _administer(self._server, "CHECKPOINT")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _administer(self._server, f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)")

    @property
    def dsn(self) -> str:
        """URL for psycopg2, the project and the peer, with the password."""
        return self._server.set(drivername="postgresql", database=self._name).render_as_string(hide_password=False)

    def sizes(self) -> Sizes:
        """Of the table now."""
        return Sizes(*self._one(_SIZES))

    def updates(self) -> tuple[int, int]:
        """Updates of rows so far, and those of them that touched no index."""
        updated, hot = self._one(_UPDATES)
        return updated, hot

    def _one(self, query: str) -> tuple[int, ...]:
        connection = psycopg2.connect(self.dsn)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                found: tuple[int, ...] = cursor.fetchone()
                return found
        finally:
            connection.close()


def _administer(server: URL, statement: str) -> None:
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
