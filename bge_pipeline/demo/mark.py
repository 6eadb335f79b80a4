"""The demo's mark: a comment on the schema and the tables that it made. What does not bear it is never dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg2.errors import DependentObjectsStillExist
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import relation_exists
from bge_pipeline.database.connection import Database
from bge_pipeline.database.locks import in_short_transaction
from bge_pipeline.database.sql import quote, sql, with_values
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import LockNotAcquired, PhaseError
from bge_pipeline.settings import Settings

MARK = "made by bge-pipeline demo; dropped by bge-pipeline demo --reset"
SOURCES = "sources"
"""The demo's second table, beside the target table."""

_SCHEMA_MARK = "SELECT obj_description(oid, 'pg_namespace') = :mark FROM pg_namespace WHERE nspname = :schema"
_TABLE_MARK = "SELECT COALESCE(obj_description(to_regclass(:table), 'pg_class') = :mark, false)"
_TAKE_TURN = "SELECT pg_try_advisory_lock(hashtextextended('bge_pipeline_demo', 0))"
_END_TURN = "SELECT pg_advisory_unlock(hashtextextended('bge_pipeline_demo', 0))"
_TRIGGER_FUNCTIONS = """
SELECT DISTINCT p.proname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE t.tgrelid = to_regclass(:table) AND NOT t.tgisinternal AND n.nspname = :schema AND p.proname = :function
"""


@contextmanager
def alone(database: Database) -> Iterator[None]:
    """Let one demo at a time work in a database.

    Raises:
        LockNotAcquired: another one does.
    """
    with database.autocommit() as connection:
        if not connection.execute(text(_TAKE_TURN)).scalar_one():
            raise LockNotAcquired(
                f"another bge-pipeline demo is at work in {database}",
                state="nothing was changed",
                next_step="wait for it to end, or give this one a folder of its own with BGE_PIPELINE_HOME",
            )
        try:
            yield
        finally:
            with suppress(
                DBAPIError
            ):  # it goes with the session at the latest, which the server may end a moment later
                connection.execute(text(_END_TURN))
            connection.invalidate()


def claim_schema(connection: Connection, schema: str) -> None:
    """Make the demo's schema, or see that the one that is there bears its mark.

    Raises:
        PhaseError: it does not.
    """
    marked = _schema_mark(connection, schema)
    if marked is None:
        connection.execute(sql("CREATE SCHEMA {schema}", schema=schema))
        connection.execute(with_values(sql("COMMENT ON SCHEMA {schema} IS :mark", schema=schema), mark=MARK))
    elif not marked:
        raise _not_ours("schema", quote(schema))


def mark_statement(*table: str) -> TextClause:
    """The statement that puts the mark on a table."""
    return with_values(sql("COMMENT ON TABLE {table} IS :mark", table=table), mark=MARK)


def exists(connection: Connection, *table: str) -> bool:
    """Whether there is a table, or anything else that has taken its name."""
    return relation_exists(connection, quote(*table))


def is_marked(connection: Connection, *table: str) -> bool:
    """Whether a table bears the mark."""
    return bool(connection.execute(text(_TABLE_MARK), {"table": quote(*table), "mark": MARK}).scalar_one())


def drop_demo_table(database: Database, settings: Settings) -> None:
    """Drop the demo's tables, and what their migration put beside them in the demo's schema.

    Nothing goes unless all of it is the demo's and nothing else depends on it.

    Raises:
        PhaseError: a name is taken by something without the mark, or something depends on the tables.
        LockNotAcquired: somebody uses the tables.
    """
    target = TargetTable.from_settings(settings)
    try:
        in_short_transaction(database, settings, "demo: drop its tables", lambda connection: _drop(connection, target))
    except DBAPIError as error:
        if not isinstance(error.orig, DependentObjectsStillExist):
            raise
        raise PhaseError(
            f"something that is not the demo's depends on its tables: {error.orig.diag.message_detail}",
            state="nothing was changed",
            next_step="drop what depends on them, then run the same command again",
        ) from error


def _drop(connection: Connection, target: TargetTable) -> None:
    marked = _schema_mark(connection, target.schema)
    if marked is None:
        return
    if not marked:
        raise _not_ours("schema", quote(target.schema))
    for name in (target.table, SOURCES):
        if exists(connection, target.schema, name):
            _require_mark(connection, target.schema, name)
            connection.execute(sql("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", table=(target.schema, name)))
            # Until the lock was had, somebody could put another table in its place.
            _require_mark(connection, target.schema, name)
    values = {"table": str(target), "schema": target.schema, "function": target.trigger_function}
    functions = connection.execute(text(_TRIGGER_FUNCTIONS), values).scalars().all()
    connection.execute(target.sql("DROP TABLE IF EXISTS {table}, {quarantine}, {journal}"))
    connection.execute(sql("DROP TABLE IF EXISTS {sources}", sources=(target.schema, SOURCES)))
    for name in functions:
        connection.execute(sql("DROP FUNCTION {function}()", function=(target.schema, name)))


def _require_mark(connection: Connection, *table: str) -> None:
    if not is_marked(connection, *table):
        raise _not_ours("table", quote(*table))


def _schema_mark(connection: Connection, schema: str) -> bool | None:
    """Whether the schema bears the mark; None where there is no such schema."""
    row = connection.execute(text(_SCHEMA_MARK), {"schema": schema, "mark": MARK}).one_or_none()
    return None if row is None else bool(row[0])


def _not_ours(kind: str, name: str) -> PhaseError:
    return PhaseError(
        f"the {kind} {name} is not the demo's: expected the comment {MARK!r} on it",
        state="nothing was changed",
        next_step=f"rename the {kind}, or run the demo in another database",
    )
