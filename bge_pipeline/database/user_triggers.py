"""Triggers of the application on the target table: which of them an UPDATE of ours fires, and whether it can skip them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.sql import quote
from bge_pipeline.database.trigger import WRITING

# tgtype: 1 for each row, 2 before, 16 on UPDATE. Partitions have copies of the triggers for each row of the table that they are
# in, and triggers of their own. A trigger for each statement of a partitioned table hears of statements on that table alone,
# and ours are on one partition each.
_FIND = """
SELECT t.tgname AS name, p.oid::regprocedure::text AS function, t.tgtype & 2 > 0 AS before, t.tgtype & 1 > 0 AS each_row,
       t.tgenabled::text AS enabled, substring(pg_get_triggerdef(t.oid) FROM 'WHEN (\\(.*\\)) EXECUTE ') AS condition,
       (SELECT COALESCE(array_agg(attname::text ORDER BY attnum), '{}') FROM pg_attribute
        WHERE attrelid = t.tgrelid AND attnum = ANY (t.tgattr::int2[])) AS columns,
       t.tgname > CAST(:own AS name) AS after_ours, n.nspname::text AS schema, c.relname::text AS relation
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (t.tgrelid = :oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(:oid)))
  AND t.tgparentid = 0 AND (c.relkind <> 'p' OR t.tgtype & 1 > 0)
  AND NOT t.tgisinternal AND t.tgtype & 16 > 0 AND t.tgenabled <> 'D'
  AND p.proname <> :own_function AND position(:mark IN p.prosrc) = 0
ORDER BY t.tgname, n.nspname, c.relname
"""


@dataclass(frozen=True)
class UserTrigger:
    """A trigger of the application that an UPDATE of the table may fire.

    Attributes:
        before: fires before the row is stored, and so may change it.
        each_row: fires for each row; otherwise once a statement.
        enabled: `O` fires in ordinary sessions, `R` in those that replicate or skip triggers, `A` in both.
        condition: its WHEN, as SQL.
        columns: fires when one of these is written; all if empty.
        after_ours: its name sorts after that of our own trigger, which so does not see what it makes of the row.
        table: that it is on, qualified and quoted: the target table or one of its partitions.
    """

    name: str
    function: str
    before: bool
    each_row: bool
    enabled: Literal["O", "R", "A"]
    condition: str | None
    columns: tuple[str, ...]
    after_ours: bool
    table: str

    def fires_on(self, column: str, *, skipping: bool) -> bool:
        """Whether writing `column` alone fires it, in a session that skips triggers or in an ordinary one."""
        is_watched = not self.columns or column in self.columns
        return is_watched and self.enabled in ("AR" if skipping else "AO")

    @property
    def hides_changes(self) -> bool:
        """Whether it may edit the text after our trigger has looked at it."""
        return self.after_ours and self.before and self.each_row

    def __str__(self) -> str:
        when = f"{'BEFORE' if self.before else 'AFTER'} UPDATE FOR EACH {'ROW' if self.each_row else 'STATEMENT'}"
        condition = f" WHEN {self.condition}" if self.condition else ""
        return f"trigger {self.name} ({when}{condition}, {self.function})"


def find_user_triggers(connection: Connection, table: TableDescription) -> tuple[UserTrigger, ...]:
    """The application's enabled triggers on UPDATE of the table, in the order in which those of a kind fire."""
    values = {
        "oid": table.oid,
        "own": table.target.trigger,
        "own_function": table.target.trigger_function,
        "mark": WRITING,
    }
    return tuple(
        UserTrigger(
            row.name, row.function, row.before, row.each_row, row.enabled, row.condition, tuple(row.columns), row.after_ours,
            quote(row.schema, row.relation),
        )
        for row in connection.execute(text(_FIND), values)
    )  # fmt: skip


def may_skip_triggers(connection: Connection) -> bool:
    """Whether the role may switch the application's triggers off in its own session; ends a transaction that it may not.

    Tried rather than looked up, since managed servers allow it to roles that are no superusers. Give an autocommit connection.
    """
    try:
        connection.execute(text("SELECT set_config('session_replication_role', 'replica', true)"))
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        return False
    return True
