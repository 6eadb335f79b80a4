"""Rules of the application on UPDATE of the target table: which of them keep vectors from being written at all.

https://www.postgresql.org/docs/current/rules-update.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.sql import quote
from bge_pipeline.errors import TargetTableError

# ev_type 2 is UPDATE. An UPDATE names the partition that its rows are in, whose own rules are meant.
_FIND = """
SELECT r.rulename::text AS name, r.is_instead, r.ev_enabled::text AS enabled, n.nspname::text AS schema,
       c.relname::text AS relation
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (c.oid = :oid OR c.oid IN (SELECT relid FROM pg_partition_tree(:oid)))
  AND c.relkind <> 'p' AND r.ev_type = '2' AND r.ev_enabled <> 'D'
ORDER BY r.rulename, n.nspname, c.relname
"""


@dataclass(frozen=True)
class UpdateRule:
    """A rule of the application that rewrites an UPDATE of the table.

    Attributes:
        is_instead: something else is done in place of the UPDATE, for all rows or under a condition.
        enabled: `O` holds in ordinary sessions, `R` in those that replicate or skip triggers, `A` in both.
        table: that it is on, qualified and quoted: the target table or one of its partitions.
    """

    name: str
    is_instead: bool
    enabled: Literal["O", "R", "A"]
    table: str

    def holds(self, *, skipping: bool) -> bool:
        """Whether it does in a session that skips triggers, or in an ordinary one."""
        return self.enabled in ("AR" if skipping else "AO")

    def __str__(self) -> str:
        return f"rule {self.name} (ON UPDATE DO {'INSTEAD' if self.is_instead else 'ALSO'})"


def find_update_rules(connection: Connection, table: TableDescription) -> tuple[UpdateRule, ...]:
    """The enabled ones, by name."""
    return tuple(
        UpdateRule(row.name, row.is_instead, row.enabled, quote(row.schema, row.relation))
        for row in connection.execute(text(_FIND), {"oid": table.oid})
    )


def rules_fault(connection: Connection, table: TableDescription, *, skipping: bool) -> tuple[str, str] | None:
    """Why a rule lets no vector be written, and the statement that mends it; None where none does."""
    for rule in find_update_rules(connection, table):
        if rule.is_instead and rule.holds(skipping=skipping):
            reason = (
                f"{rule} of {rule.table} does something else in place of an UPDATE, so that no vector could be written"
            )
            skips = "" if rule.holds(skipping=True) else " or set BACKFILL_TRIGGERS=skip, which leaves it out"
            return reason, f"ALTER TABLE {rule.table} DISABLE RULE {quote(rule.name)};{skips}"
    return None


def require_no_instead(connection: Connection, table: TableDescription, *, skipping: bool) -> None:
    """Refuse to begin on a table whose UPDATE is another statement.

    Raises:
        TargetTableError: names the rule, and the statement that mends it.
    """
    fault = rules_fault(connection, table, skipping=skipping)
    if fault is not None:
        raise TargetTableError(fault[0], state="nothing was changed", next_step=fault[1])
