"""The tables that this project puts beside the target, as the catalog has them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

_FIND = """
SELECT c.relkind = 'r' AS is_table, c.relpersistence = 'u' AS unlogged,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
       EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) AS has_primary_key,
       EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = c.oid) AS published_by_name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :name
"""


@dataclass(frozen=True)
class TableBeside:
    """What bears the name of a table of ours.

    Attributes:
        is_table: an ordinary table; otherwise a view, an index or the like.
        unlogged: left out of publications, and emptied by a crash.
        published_by_name: somebody listed it in a publication, which forbids to make it unlogged.
    """

    is_table: bool
    unlogged: bool
    columns: frozenset[str]
    has_primary_key: bool
    published_by_name: bool

    def is_ours(self, columns: frozenset[str]) -> bool:
        """Whether it has the columns of the table that this project would make under its name."""
        return self.is_table and columns <= self.columns

    @property
    def may_become_unlogged(self) -> bool:
        """Whether it is logged, and PostgreSQL would let that be changed."""
        return not self.unlogged and not self.published_by_name


def find_beside(connection: Connection, schema: str, name: str) -> TableBeside | None:
    """What is in the schema under that name; None if nothing is."""
    row = connection.execute(text(_FIND), {"schema": schema, "name": name}).one_or_none()
    if row is None:
        return None
    return TableBeside(
        is_table=row.is_table,
        unlogged=row.unlogged,
        columns=frozenset(row.columns),
        has_primary_key=row.has_primary_key,
        published_by_name=row.published_by_name,
    )


def create_words(*, unlogged: bool) -> str:
    """How the statement begins that makes such a table.

    Unlogged where a publication takes up every new table: a subscriber that lacks the table would stop at the first row in
    it. What is in these tables can be lost: a row put aside is tried again, and nothing resumes from the journal.
    """
    return f"CREATE {'UNLOGGED ' if unlogged else ''}TABLE IF NOT EXISTS"
