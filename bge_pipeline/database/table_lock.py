"""Locking a table, and every partition of one, within one wait."""

from __future__ import annotations

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.partitions import is_partitioned
from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable

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


def lock_statement(target: TargetTable, mode: str) -> TextClause:
    """The statement that locks an ordinary table in that mode until the transaction ends."""
    return target.sql(f"LOCK TABLE {{table}} IN {mode} MODE")


def lock_table(connection: Connection, target: TargetTable, mode: str) -> None:
    """Lock the table, and its partitions if it has some, until the transaction ends.

    Args:
        connection: in a transaction, whose `lock_timeout` is for all of it.
        target: the table.
        mode: PostgreSQL's words, such as `ACCESS EXCLUSIVE`.
    """
    if not is_partitioned(connection, target):
        connection.execute(lock_statement(target, mode))
        return
    name = "'" + quote(target.schema, target.table).replace("'", "''") + "'"
    connection.execute(with_values(text("DO :body"), body=_EACH.format(table=name, mode=mode)))
