"""Locking a table, and every partition of one, within one wait, and sending autovacuum away first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.partitions import is_partitioned
from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable

if TYPE_CHECKING:
    from bge_pipeline.settings import LockSettings

MAINTENANCE = "SHARE UPDATE EXCLUSIVE"
"""The lock of VACUUM, ANALYZE and CREATE INDEX CONCURRENTLY, for which neither readers nor writers wait."""

_BEYOND_DEADLOCK_TIMEOUT_MS = 500
"""PostgreSQL sends autovacuum away from a lock that somebody has waited for as long as `deadlock_timeout`, and no sooner."""

# LOCK TABLE takes the partitions one after another and would wait for each as long as lock_timeout says, while nobody gets at
# those that it has. Here all of them share that time.
_EACH = """
DECLARE
  wait constant text := pg_catalog.current_setting('lock_timeout');
  seconds constant double precision := pg_catalog.date_part('epoch', wait::interval);
  deadline constant timestamptz := pg_catalog.clock_timestamp() + wait::interval;
  part pg_catalog.regclass;
BEGIN
  FOR part IN
    SELECT relid FROM pg_catalog.pg_partition_tree({table}::pg_catalog.regclass) ORDER BY level, relid
  LOOP
    IF seconds > 0 THEN
      PERFORM pg_catalog.set_config('lock_timeout', GREATEST(1, CAST(
        1000 * pg_catalog.date_part('epoch', deadline - pg_catalog.clock_timestamp()) AS bigint))::text, true);
    END IF;
    EXECUTE pg_catalog.format('LOCK TABLE ONLY %s IN {mode} MODE', part);
  END LOOP;
  PERFORM pg_catalog.set_config('lock_timeout', wait, true);
END
"""
_TIMEOUTS = """
SELECT max(setting::int) FILTER (WHERE name = 'lock_timeout') AS lock_ms,
       max(setting::int) FILTER (WHERE name = 'deadlock_timeout') AS deadlock_ms
FROM pg_catalog.pg_settings WHERE name IN ('lock_timeout', 'deadlock_timeout')
"""


def lock_statement(target: TargetTable, mode: str) -> TextClause:
    """The statement that locks an ordinary table in that mode until the transaction ends."""
    return target.sql(f"LOCK TABLE {{table}} IN {mode} MODE")


def maintenance_statements(target: TargetTable, settings: LockSettings) -> list[TextClause]:
    """The statements by which `lock_table` begins, for a server with the default `deadlock_timeout`."""
    return [
        text(f"SET LOCAL lock_timeout = '{max(settings.lock_timeout_ms, 1_000 + _BEYOND_DEADLOCK_TIMEOUT_MS)}ms'"),
        lock_statement(target, MAINTENANCE),
        text(f"SET LOCAL lock_timeout = '{settings.lock_timeout_ms}ms'"),
    ]


def lock_table(connection: Connection, target: TargetTable, mode: str) -> None:
    """Lock the table, and its partitions if it has some, until the transaction ends.

    Autovacuum, which may work on a large table for hours, gives way to it. That takes `deadlock_timeout`, for which the
    application must not wait behind a strong lock: so the weak one that vacuum has is waited for first.

    Args:
        connection: in a transaction, whose `lock_timeout` is for all of it.
        target: the table.
        mode: PostgreSQL's words, such as `ACCESS EXCLUSIVE`.
    """
    divided = is_partitioned(connection, target)
    with _patient(connection):
        _lock(connection, target, MAINTENANCE, divided=divided)
    _lock(connection, target, mode, divided=divided)


def lock_out_maintenance(connection: Connection, *tables: TargetTable) -> None:
    """Let nobody vacuum, analyse or index the tables until the transaction ends; of a partitioned one its partitions may be."""
    with _patient(connection):
        for table in tables:
            connection.execute(table.sql(f"LOCK TABLE ONLY {{table}} IN {MAINTENANCE} MODE"))


def _lock(connection: Connection, target: TargetTable, mode: str, *, divided: bool) -> None:
    if not divided:
        connection.execute(lock_statement(target, mode))
        return
    name = "'" + quote(target.schema, target.table).replace("'", "''") + "'"
    connection.execute(with_values(text("DO :body"), body=_EACH.format(table=name, mode=mode)))


@contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """Wait in the block as long as autovacuum takes to give way; after an error the transaction is over anyway."""
    timeouts = connection.execute(text(_TIMEOUTS)).one()
    if 0 < timeouts.lock_ms < timeouts.deadlock_ms + _BEYOND_DEADLOCK_TIMEOUT_MS:
        connection.execute(text(f"SET LOCAL lock_timeout = '{timeouts.deadlock_ms + _BEYOND_DEADLOCK_TIMEOUT_MS}ms'"))
        yield
        connection.execute(text(f"SET LOCAL lock_timeout = '{timeouts.lock_ms}ms'"))
    else:
        yield
