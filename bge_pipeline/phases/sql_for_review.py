"""The phases as SQL for review, where no database can be asked: what `alembic upgrade --sql` prints.

The statements are those that the phases run, from the same builders. What the phases look up, and a script cannot, it
demands: where it would be wrong to go on, its transaction fails and changes nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from sqlalchemy import TextClause, text

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.index_build import memory_statement
from bge_pipeline.database.indexes import MEBIBYTE, create_index_statement, drop_index_statement
from bge_pipeline.database.locks import short_transaction_statements
from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.database.operator import operator_lock_statement
from bge_pipeline.database.pending import IN_QUARANTINE, LACKS_VECTOR, pending_index_statement
from bge_pipeline.database.session_settings import unbounded_statements
from bge_pipeline.database.sql import quote, render, with_values
from bge_pipeline.database.table_lock import lock_statement, maintenance_statements
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import WatchedColumns
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.exchange import ALONE, exchange_statements
from bge_pipeline.phases.expand import check_dimensions, expand_statements
from bge_pipeline.phases.last_rows import WITHOUT_WRITERS
from bge_pipeline.phases.pending_index import pending_index_name
from bge_pipeline.phases.safeguards import safeguard_script
from bge_pipeline.phases.vector_index import plan_vector_index
from bge_pipeline.settings import Settings
from bge_pipeline.space import EmbeddingSpace

_ROWS = 1_000_000
"""Of the table, for the lists of an IVFFlat index where INDEX_LISTS does not say."""

_MEMORY_BY_DEFAULT_MB = 64
"""PostgreSQL's maintenance_work_mem."""

_PARTS = """
DECLARE
  found record;
  note jsonb;
BEGIN
  FOR found IN
    SELECT attname, pg_catalog.col_description(attrelid, attnum) AS comment FROM pg_catalog.pg_attribute
    WHERE attrelid = {table}::pg_catalog.regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
  LOOP
    BEGIN
      note := found.comment::jsonb -> 'bge_pipeline';
    EXCEPTION WHEN data_exception THEN
      note := NULL;
    END;
    IF (CASE found.attname
      WHEN {embedding} THEN note ->> 'role' = 'current'
      WHEN {column} THEN {note} IS DISTINCT FROM
        jsonb '{{"tuple_target_before": 0}}' || (note - 'space' - 'search_effort' - 'search_effort_index')
        OR (note -> 'space' @> {identity}) IS NOT TRUE
      ELSE note ->> 'embedding_column' = {embedding}
    END) THEN
      RAISE EXCEPTION USING MESSAGE = {other_part}, HINT = {without_script},
        DETAIL = pg_catalog.format('%I: %s', found.attname, COALESCE(found.comment, 'no comment'));
    END IF;
  END LOOP;
END
"""
"""Of the new column's note, the search effort may differ, and the names of model and precision, which are no part of a space."""

_DEMANDS = """
DECLARE
  pending bigint;
BEGIN
  SELECT count(*) INTO pending FROM ({found}) found;
  IF pending > {most} THEN
    RAISE EXCEPTION USING MESSAGE = {too_many}, HINT = 'bge-pipeline backfill';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indexrelid = {index}::pg_catalog.regclass AND indisvalid) THEN
    RAISE EXCEPTION USING MESSAGE = {invalid}, HINT = 'build it again';
  END IF;
END
"""


@dataclass(frozen=True)
class Script:
    """Statements for review: first those that stand outside of a transaction, then those of one transaction."""

    alone: tuple[TextClause, ...]
    together: tuple[TextClause, ...]


def expand_script(target: TargetTable, settings: Settings, space: EmbeddingSpace) -> Script:
    """All of expand; the old ANN index, whose name only the database knows, is left out."""
    check_dimensions(settings, space)
    _require_column(target)
    vector = VectorType(settings.target_vector_type, space.dimensions)
    safeguards = safeguard_script(target, WatchedColumns(target.column_for(space.dimensions)))
    return Script(
        (),
        (
            *short_transaction_statements(settings),
            operator_lock_statement(target),
            *maintenance_statements(target, settings),
            lock_statement(target, ALONE),
            _demand_parts(target, space),
            *expand_statements(target, vector, _note(target, space), safeguards, lowered=[target]),
        ),
    )


def swap_script(target: TargetTable, settings: Settings, space: EmbeddingSpace) -> Script:
    """All of swap but the quality gate; the old column is taken to be LEGACY_DIMENSIONS wide."""
    _require_column(target)
    column, vector = target.column_for(space.dimensions), VectorType(settings.target_vector_type, space.dimensions)
    plan = plan_vector_index(settings, space, _ROWS, None, settings.target_vector_type)
    index, pending = target.vector_index(column, space.fingerprint, plan.method), pending_index_name(target, space)
    megabytes = math.ceil(plan.memory_bytes / MEBIBYTE)
    note, old_type = _note(target, space).as_comment(), f"vector({settings.legacy_dimensions})"
    new = Column(column, 0, settings.target_vector_type, str(vector), False, False, note)
    old = Column(target.embedding_column, 0, "vector", old_type, False, False, None)
    return Script(
        (
            _demand_parts(target, space),  # here too: what follows drops indexes
            *unbounded_statements(),
            # Dropped first, since a build that failed leaves an invalid index, for which IF NOT EXISTS would make way.
            drop_index_statement(target.schema, pending),
            pending_index_statement(target, column, pending),
            drop_index_statement(target.schema, index),
            *([memory_statement(megabytes)] if megabytes > _MEMORY_BY_DEFAULT_MB else []),
            create_index_statement(target, column, index, plan),
            text("RESET maintenance_work_mem"),
            target.sql("ANALYZE {table} ({column})", column=column),
        ),
        (
            *short_transaction_statements(settings),
            operator_lock_statement(target),
            *maintenance_statements(target, settings),
            lock_statement(target, WITHOUT_WRITERS),
            _demand_parts(target, space),
            _demands(target, column, index, settings.swap_max_pending_rows),
            lock_statement(target, ALONE),
            *exchange_statements(target, new, old, drop_old=settings.old_embedding == "drop"),
        ),
    )


def _require_column(target: TargetTable) -> None:
    if not target.row_text.is_column:
        raise ConfigurationError(
            "TARGET_TEXT and TARGET_WHERE: the columns that the trigger watches are found by asking the database",
            state="no script was printed",
            next_step="run it without --sql",
        )


def _note(target: TargetTable, space: EmbeddingSpace) -> ColumnNote:
    """The new column's, of a table whose `toast_tuple_target` is PostgreSQL's own."""
    return ColumnNote("new", space, embedding_column=target.embedding_column, tuple_target_before=0)


def _demand_parts(target: TargetTable, space: EmbeddingSpace) -> TextClause:
    """A block that fails unless the new column, where it is there, is one that expand made for this space, and none is another's.

    It fails too where somebody went back from the new column, and where this project fills the embedding column itself: the
    next migration keeps that one current, which takes a look at the table.
    """
    column = target.column_for(space.dimensions)
    note = json.loads(_note(target, space).as_comment())["bge_pipeline"]
    del note["space"]
    body = _PARTS.format(
        table=_constant(str(target)),
        embedding=_constant(target.embedding_column),
        column=_constant(column),
        note="jsonb " + _constant(json.dumps(note, ensure_ascii=False)),
        identity="jsonb " + _constant(json.dumps(space.identity, ensure_ascii=False)),
        other_part=_constant(
            f"a column of {target} is not what this script expects: {column!r} absent or made for {space}, which nobody went "
            f"back from, and {target.embedding_column!r} filled by the application alone. Nothing was changed"
        ),
        without_script=_constant("bge-pipeline status says where the migration stands; run the revision without --sql"),
    )
    return with_values(text("DO :body"), body=body)


def _demands(target: TargetTable, column: str, index: str, most: int) -> TextClause:
    """What must hold before the exchange, as a block that fails where it does not."""
    found = target.sql(
        f"SELECT FROM {{table}} t WHERE {LACKS_VECTOR} AND NOT {IN_QUARANTINE} ORDER BY {{ids}} LIMIT {most + 1}",
        column=column,
    )
    body = _DEMANDS.format(
        found=render(found),
        most=most,
        too_many=_constant(
            f"more than {most} rows of {target} are pending (SWAP_MAX_PENDING_ROWS): nothing was exchanged"
        ),
        index=_constant(quote(target.schema, index)),
        invalid=_constant(f"index {index} is not valid: nothing was exchanged"),
    )
    return with_values(text("DO :body"), body=body)


def _constant(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
