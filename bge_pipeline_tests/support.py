"""What the tests of database and phases share: short statements, small tables, an application, and bad encoders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import BackfillResult, backfill
from bge_pipeline.phases.consent import with_consent
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.swap import SwapResult
from bge_pipeline.phases.swap import swap as swap_with_service
from bge_pipeline.settings import Settings

ENCODER = HashingEncoder()
"""The encoder that `settings` of conftest configures."""
SEGMENTS = TargetTable("public", "segments", ("id",), "text", "embedding")


_SCHEMA = """
SELECT attname::text, format_type(atttypid, atttypmod), attnotnull::text,
       COALESCE(col_description(attrelid, attnum), '') || COALESCE(attacl::text, '')
FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped;
SELECT pg_get_indexdef(indexrelid), indisvalid::text FROM pg_index WHERE indrelid = CAST(:table AS regclass);
SELECT pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger
WHERE tgrelid = CAST(:table AS regclass) AND NOT tgisinternal;
SELECT relname::text, relkind::text FROM pg_class
WHERE relkind IN ('r', 'v', 'm') AND relnamespace = 'public'::regnamespace AND :table <> '';
SELECT proname::text, prosrc FROM pg_proc
WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql') AND :table <> ''
"""


def administer(server_url: URL, statement: str) -> None:
    """Run a statement that no transaction may hold, such as CREATE DATABASE."""
    engine = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def copy_database(server_url: URL, template: str, name: str) -> None:
    """A database like the template; by its files, in half the time, where the server does not wait for the disk."""
    engine = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        syncs = connection.execute(text("SHOW fsync")).scalar_one() == "on"
        by_files = not syncs and (connection.dialect.server_version_info or ()) >= (15,)
        strategy = " STRATEGY FILE_COPY" if by_files else ""
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}{strategy}"))
    engine.dispose()


def execute(database: Database, statement: str, **values: Any) -> list[Any]:
    """Run one statement in a transaction of its own; its rows, if it has any."""
    with database.transaction() as connection:
        result = connection.execute(text(statement), values)
        return list(result.all()) if result.returns_rows else []


def scalar(database: Database, statement: str, **values: Any) -> Any:
    """The single value that a statement returns."""
    ((value,),) = execute(database, statement, **values)
    return value


def columns_of(database: Database, table: str = "segments") -> dict[str, str]:
    """Columns of a table and their types."""
    rows = execute(
        database,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped",
        table=table,
    )
    return dict(tuple(row) for row in rows)


def schema_of(database: Database, table: str = "segments") -> list[tuple[Any, ...]]:
    """Everything about a table that a phase may change: columns, comments, indexes, triggers, grants."""
    with database.autocommit() as connection:
        return sorted(
            tuple(row) for query in _SCHEMA.split(";") for row in connection.execute(text(query), {"table": table})
        )


def pending_ids(database: Database, column: str = "embedding_384", table: str = "segments") -> list[int]:
    """Ids of rows without a vector."""
    return [row[0] for row in execute(database, f'SELECT id FROM {table} WHERE "{column}" IS NULL ORDER BY id')]


def wrong_vectors(
    database: Database, encoder: HashingEncoder, column: str, table: str = "segments", key: str = "id"
) -> list[Any]:
    """Ids of rows whose vector is not the one that the encoder makes of their text now."""
    select = f'SELECT {key}, text, "{column}"::text FROM {table} WHERE "{column}" IS NOT NULL ORDER BY 1'
    rows = execute(database, select)
    if not rows:
        return []
    expected = encoder.encode(encoder.tokenize([row[1] for row in rows]))
    found = np.array([parsed(row[2]) for row in rows], np.float32)
    return [
        row[0] for row, same in zip(rows, np.isclose(found, expected, atol=1e-6).all(axis=1), strict=True) if not same
    ]


def parsed(vector: str) -> list[float]:
    """The numbers in pgvector's text form."""
    return [float(number) for number in vector.strip("[]").split(",")]


def agreed(migration: Migration) -> Settings:
    """The settings of somebody who agrees to whatever step the table has ahead."""
    return with_consent(migration.settings, require_table(migration))


NASTY_IDS = [
    "",
    " ",
    "a",
    "B",
    "doc_1",
    "doc_10",
    "doc_9",
    "it's",
    '"quoted"',
    r"back\slash",
    "a/b/c",
    "..",
    "100%",
    "%s :x {id}",
    "ñandú",
    "本文",
    "🙂",
    "x" * 300,
    "'); DROP TABLE segments; --",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
]
"""Texts that an application may have as ids."""


def as_it_stands(database: Database, statement: str) -> list[Any]:
    """Run a statement that has colons and percent signs of its own; its rows, if it has any."""
    with database.transaction() as connection:
        result = connection.exec_driver_sql(statement.replace("%", "%%"))
        return list(result.all()) if result.returns_rows else []


def give_text_ids(database: Database, id_type: str) -> None:
    """Make the ids of the demo table nasty texts, the rest `doc_21` and so on, in a column of that type."""
    as_it_stands(database, "ALTER TABLE segments ALTER COLUMN id DROP IDENTITY")
    as_it_stands(database, f"ALTER TABLE segments ALTER COLUMN id TYPE {id_type} USING 'doc_' || id * 7")
    for number, nasty in enumerate(NASTY_IDS, start=1):
        execute(database, "UPDATE segments SET id = :nasty WHERE id = :id", nasty=nasty, id=f"doc_{number * 7}")
    as_it_stands(database, "ANALYZE segments")


COMPOSITE_KEYS = {
    "tenant_id,doc_id": (
        "tenant_id uuid, ADD doc_id bigint",
        "tenant_id = md5((id % 3)::text)::uuid, doc_id = id / 3",
    ),
    "document_id,chunk_no": (
        "document_id text, ADD chunk_no int",
        f"document_id = (CAST(:ids AS text[]))[1 + id % {len(NASTY_IDS)}], chunk_no = id / {len(NASTY_IDS)}",
    ),
}
"""Keys that the demo table may get in place of its id, none of whose columns is unique alone; by TARGET_ID_COLUMN."""


def give_composite_key(database: Database, names: str) -> None:
    """Make one of `COMPOSITE_KEYS` the primary key of the demo table, and drop its id."""
    columns, values = COMPOSITE_KEYS[names]
    execute(database, f"ALTER TABLE segments ADD {columns}")
    execute(database, f"UPDATE segments SET {values}", **({"ids": NASTY_IDS} if ":ids" in values else {}))
    execute(database, f"ALTER TABLE segments DROP COLUMN id, ADD PRIMARY KEY ({names})")
    execute(database, "ANALYZE segments")


def put_in_quarantine(
    database: Database, *ids: int, table: str = "segments", quarantine: str = "segments_embedding_quarantine"
) -> None:
    """Put rows aside with the texts that they have."""
    execute(
        database,
        f"INSERT INTO {quarantine} (row_id, error, quarantined_at, text_digest) "
        f"SELECT id, 'bad', now(), md5(convert_to(text, 'UTF8'))::uuid FROM {table} WHERE id = ANY (:ids)",
        ids=list(ids),
    )


def store_vectors(database: Database, column: str, encoder: HashingEncoder) -> None:
    """Give every row of `segments` the vector that the encoder makes of its text, as an application would."""
    rows = execute(database, "SELECT id, text FROM segments ORDER BY id")
    vectors = encoder.encode(encoder.tokenize([row[1] for row in rows]))
    with database.transaction() as connection:
        connection.execute(
            text(f'UPDATE segments SET "{column}" = CAST(:vector AS vector) WHERE id = :id'),
            [{"id": row[0], "vector": str(vector.tolist())} for row, vector in zip(rows, vectors, strict=True)],
        )


def make_writes_slow(database: Database, seconds: float) -> None:
    """Let every UPDATE of a row of `segments` take so long."""
    execute(
        database,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$; "
        "CREATE TRIGGER dawdle BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )


def fill(migration: Migration, encoder: HashingEncoder = ENCODER) -> BackfillResult:
    """Expand and backfill."""
    expand(Migration(migration.database, agreed(migration)), encoder.space)
    return backfill(migration, encoder)


def swap(migration: Migration, encoder: HashingEncoder = ENCODER) -> SwapResult:
    """Swap, agreed to and without measuring the quality of vectors that mean nothing."""
    quiet = agreed(migration).model_copy(update={"quality_gate": "off", "search_probes": 10})
    return swap_with_service(Migration(migration.database, quiet), EmbeddingsService(encoder, quiet))


def fill_and_swap(migration: Migration, encoder: HashingEncoder = ENCODER) -> SwapResult:
    """Expand, backfill and swap."""
    fill(migration, encoder)
    return swap(migration, encoder)


def statements_of(database: Database, act: Callable[[Connection], Any]) -> list[tuple[str, Any]]:
    """The statements that `act` runs on a connection, as the driver gets them."""

    def on_a_connection() -> None:
        with database.autocommit() as connection:
            act(connection)

    return _listened(database.engine, on_a_connection)


def statements_run_by(act: Callable[[], Any]) -> list[str]:
    """The statements that `act` runs in this process, on whatever connection."""
    return [statement for statement, _ in _listened(Engine, act)]


def _listened(whose: Engine | type[Engine], act: Callable[[], Any]) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(whose, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(whose, "before_cursor_execute", note)
    return seen


def make_users_tables(database: Database, schema: str = "public") -> None:
    """What an application may have under the names that the demo uses too, in place of what is there."""
    name = quote(schema)
    for table in ("segments", "sources"):
        execute(database, f"DROP TABLE IF EXISTS {name}.{table} CASCADE")
    execute(database, "CREATE EXTENSION IF NOT EXISTS vector")
    execute(database, f"CREATE SCHEMA IF NOT EXISTS {name}")
    execute(database, f"CREATE TABLE {name}.segments (id bigint PRIMARY KEY, text text, embedding vector(3))")
    execute(database, f"INSERT INTO {name}.segments SELECT n, 'text ' || n, '[1,2,3]' FROM generate_series(1, 50) n")
    execute(database, f"CREATE TABLE {name}.sources (invoice text)")
    execute(database, f"INSERT INTO {name}.sources VALUES ('4711')")
    execute(database, f"CREATE VIEW {name}.long_texts AS SELECT id, embedding FROM {name}.segments")


def contents_of(database: Database, schema: str = "public") -> dict[str, list[str]]:
    """The rows of every table and view of a schema, by name."""
    names = execute(
        database,
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:schema)::oid AND relkind IN ('r', 'v')",
        schema=quote(schema),
    )
    return {
        name: [row[0] for row in execute(database, f"SELECT t::text FROM {quote(schema, name)} t ORDER BY 1")]
        for (name,) in names
    }


def require_icu(database: Database) -> None:
    """Skip where the server has no collation that calls different spellings equal."""
    try:
        execute(database, "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except DBAPIError as error:
        pytest.skip(str(error.orig).strip())


@contextmanager
def application(database: Database) -> Iterator[Connection]:
    """Another client in a transaction of its own, rolled back at the end unless it committed."""
    engine = create_engine(database.url, poolclass=NullPool, connect_args={"application_name": "application"})
    with engine.connect() as connection:
        yield connection
        connection.rollback()
    engine.dispose()


def forget_old_model(database):
    """As where the old model's folder is on another host."""
    note = scalar(
        database,
        "SELECT col_description('segments'::regclass, attnum) FROM pg_attribute WHERE attname = "
        "'embedding' AND attrelid = 'segments'::regclass",
    )
    there = note.replace("hashing-v1-seed0", "sha256:0123").replace('"hashing"', '"/models/of/another/host"')
    assert there != note
    with database.transaction() as connection:
        connection.exec_driver_sql(f"COMMENT ON COLUMN segments.embedding IS '{there}'")


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Wrapped(HashingEncoder):
    """The ordinary encoder with a hook before texts are tokenised and another on the vectors."""

    def __init__(
        self,
        *,
        before: Callable[[Sequence[str]], None] = lambda _: None,
        after: Callable[[Sequence[str], NDArray[np.float32]], NDArray[np.float32]] = lambda _, vectors: vectors,
    ) -> None:
        super().__init__()
        self._before = before
        self._after = after

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        tokens = super().tokenize(texts)
        return TokenizedTexts((list(texts), tokens), tokens.token_counts, tokens.truncated)

    def encode(self, tokens: TokenizedTexts, *, batch_size: int | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        texts, inner = tokens.payload
        self._before(texts)
        return self._after(texts, super().encode(inner))
