"""Quarantine: rows that cannot be embedded, kept with their error, never blocking the rest."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause

from bge_pipeline.database.beside import TableBeside, create_words
from bge_pipeline.database.catalog import relation_exists
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.pending import IS_QUARANTINED_TEXT, TEXT_DIGEST, quarantine_is_usable
from bge_pipeline.database.pending_reader import PendingBatch
from bge_pipeline.database.sql import Written
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ConfigurationError

QUARANTINE_COLUMNS = frozenset({"row_id", "error", "quarantined_at"})
"""What every version of the table has; the second and further columns of a key are `row_id_2` and so on."""
_ROW_ID = re.compile(r"row_id(_\d+)?")


@dataclass(frozen=True)
class QuarantinedRow:
    """One row that could not be embedded, and why."""

    row_id: Any
    error: str
    quarantined_at: str


def quarantine_statements(
    target: TargetTable, found: TableBeside | None = None, *, unlogged: bool = False
) -> list[TextClause]:
    """The statements that make an empty quarantine table, or mend the one that is there; none where it is right.

    The key's columns take their types from the target table, so that both are compared alike in every session. A table for
    another number of them is made anew: its rows are tried again. An earlier version kept no digest of the text, and an index
    instead of the primary key, without which no row can be deleted from a table that is published.
    """
    primary_key = target.sql(
        "ALTER TABLE {quarantine} DROP CONSTRAINT IF EXISTS {key}, ADD CONSTRAINT {key} PRIMARY KEY ({quarantined_ids})",
        key=target.quarantine_primary_key,
    )
    create = target.sql(
        f"{create_words(unlogged=unlogged)} {{quarantine}} AS SELECT {{row_ids}}, CAST('' AS text) AS error, "
        "now() AS quarantined_at, CAST(NULL AS uuid) AS text_digest FROM {table} WITH NO DATA",
        row_ids=Written(target.key.renamed("row_id")),
    )
    if found is None:
        return [create, primary_key]
    if {name for name in found.columns if _ROW_ID.fullmatch(name)} != set(target.key.under("row_id").columns):
        return [drop_quarantine_statement(target), create, primary_key]
    statements = []
    if unlogged and found.may_become_unlogged:
        statements.append(target.sql("ALTER TABLE {quarantine} SET UNLOGGED"))
    if not found.has_primary_key:
        statements += [primary_key, target.sql("DROP INDEX IF EXISTS {index}", index=_earlier_key(target))]
    if "text_digest" not in found.columns:
        statements += [
            target.sql("ALTER TABLE {quarantine} ADD COLUMN text_digest uuid"),
            target.sql(
                f"UPDATE {{quarantine}} q SET text_digest = {TEXT_DIGEST} FROM {{table}} t "
                "WHERE {quarantined_id} = {t_id}"
            ),
            target.sql("DELETE FROM {quarantine} WHERE text_digest IS NULL"),
        ]
    return statements


def copy_quarantine_statement(source: TargetTable, destination: TargetTable) -> TextClause:
    """The statement that puts the rows of one quarantine into another of the same table."""
    return source.sql(
        "INSERT INTO {destination} ({quarantined_ids}, error, quarantined_at, text_digest) "
        "SELECT {quarantined_ids}, error, quarantined_at, text_digest FROM {quarantine} ON CONFLICT DO NOTHING",
        destination=(destination.schema, destination.quarantine_table),
    )


def drop_quarantine_statement(target: TargetTable) -> TextClause:
    """The statement that removes the quarantine table."""
    return target.sql("DROP TABLE IF EXISTS {quarantine}")


def quarantine_row(connection: Connection, target: TargetTable, batch: PendingBatch, position: int, error: str) -> bool:
    """Put one row aside with the text that was read, unless it has another by now; returns whether it was.

    No lock is needed: a row whose text changes afterwards is pending again by that.
    """
    statement = target.sql(
        "INSERT INTO {quarantine} ({quarantined_ids}, error, quarantined_at, text_digest) "
        "SELECT {t_ids}, :error, now(), CAST(:digest AS uuid) FROM {table} t "
        f"WHERE {{t_id}} = :row_id AND {TEXT_DIGEST} = CAST(:digest AS uuid) "
        "ON CONFLICT ({quarantined_ids}) DO UPDATE SET error = EXCLUDED.error, quarantined_at = EXCLUDED.quarantined_at, "
        "text_digest = EXCLUDED.text_digest"
    )
    digest = str(uuid.UUID(bytes=batch.digests[position]))
    values = {"row_id": batch.ids[position], "digest": digest, "error": _storable(error[:2_000])}
    return connection.execute(statement, values).rowcount == 1


def _storable(error: str) -> str:
    """The message without what no text of PostgreSQL can hold, which an endpoint's answer may."""
    return error.replace("\0", "?").encode(errors="replace").decode()


def has_quarantine(connection: Connection, target: TargetTable) -> bool:
    """Whether the quarantine table is there."""
    return relation_exists(connection, target.quarantine)


def list_quarantined(connection: Connection, target: TargetTable, limit: int = 20) -> list[QuarantinedRow]:
    """The latest rows put aside whose text is still the one that failed; none where there is no quarantine."""
    if not quarantine_is_usable(connection, target):
        return []
    statement = target.sql(
        "SELECT {row_id}, q.error, q.quarantined_at::text FROM {quarantine} q "
        f"WHERE EXISTS (SELECT FROM {{table}} t WHERE {IS_QUARANTINED_TEXT}) "
        "ORDER BY q.quarantined_at DESC, {row_ids} LIMIT :limit",
        row_id=_row_id_text(target),
        row_ids=Written(target.key.under("row_id").listed("q")),
    )
    return [QuarantinedRow(*row) for row in connection.execute(statement, {"limit": limit})]


def forget_changed(connection: Connection, target: TargetTable) -> int:
    """Delete what is kept of rows that have gone or have another text by now; returns how many."""
    statement = f"DELETE FROM {{quarantine}} q WHERE NOT EXISTS (SELECT FROM {{table}} t WHERE {IS_QUARANTINED_TEXT})"
    return connection.execute(target.sql(statement)).rowcount


def count_by_error(connection: Connection, target: TargetTable) -> dict[str, int]:
    """Rows whose text is still the one that failed, by the error, the most frequent first."""
    if not quarantine_is_usable(connection, target):
        return {}
    statement = target.sql(
        "SELECT q.error, count(*) AS rows FROM {quarantine} q "
        f"WHERE EXISTS (SELECT FROM {{table}} t WHERE {IS_QUARANTINED_TEXT}) GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return {row.error: row.rows for row in connection.execute(statement)}


def release_all(connection: Connection, target: TargetTable) -> int:
    """Make every quarantined row pending again; returns how many."""
    return release(connection, target, None)


def release(connection: Connection, target: TargetTable, ids: Sequence[str] | None) -> int:
    """Make quarantined rows pending again: those of the ids, given as text, or without any all; returns how many.

    Raises:
        ConfigurationError: an id of several columns is no JSON array of as many.
    """
    if not quarantine_is_usable(connection, target):
        return 0
    if not ids:
        return connection.execute(target.sql("DELETE FROM {quarantine}")).rowcount
    chosen = target.sql("DELETE FROM {quarantine} q WHERE {row_id} = ANY(:ids)", row_id=_row_id_text(target))
    return connection.execute(chosen, {"ids": [_as_listed(target, one) for one in ids]}).rowcount


def _row_id_text(target: TargetTable) -> Written:
    return Written(target.key.under("row_id").text("q"))


def _as_listed(target: TargetTable, row_id: str) -> str:
    """An id that a person gives as `list_quarantined` shows it: of several columns, numbers may be given as such."""
    columns = len(target.id_columns)
    if columns == 1:
        return row_id
    try:
        parts = json.loads(row_id, parse_int=str, parse_float=str)
    except json.JSONDecodeError:
        parts = None
    if not isinstance(parts, list) or len(parts) != columns:
        raise ConfigurationError(
            f"expected an id as a JSON array of {columns} values ({target.key}), got {row_id!r}",
            state="nothing was released",
            next_step="bge-pipeline quarantine list shows the rows with their ids",
        )
    return id_as_text(tuple(parts))


def _earlier_key(target: TargetTable) -> tuple[str, str]:
    return target.schema, target.earlier_quarantine_key
