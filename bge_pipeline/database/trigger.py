"""The trigger that empties a row's vector when its text changes, so that no text keeps another text's vector.

It sets columns of the row at hand to NULL and touches nothing else, so that there is nothing in it that could fail, wait
or want a right that the application's role does not have. A second trigger sees the application write a vector, and notes
for the rest of the transaction that it is the text's which comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.partitions import STORED
from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.text_columns import TextColumns, generated_columns

WRITING = "bge_pipeline.writing"
"""Set to `on` in transactions that write vectors of ours: a text that changes in the same statement was changed by a
trigger of the application, and the vector at hand is that of the text before."""

VECTORS_FIRST = "bge_pipeline.vectors_first"
"""Digests of rows to which the transaction at hand has given another vector and not yet another text, the last hundred. A text
that follows is the vector's: the application writes both, one after the other. What is not in it is only embedded once more."""

_VECTOR = "vector"
"""Argument of the trigger that sees vectors written; the one that sees texts change has a query or nothing."""

_DIGEST_LETTERS = 32
_REMEMBERED_ROWS = 100

# A text that is made of several columns is compared by the query in the trigger's argument. Where that fails, a changed column
# counts as a changed text.
_BODY = """
DECLARE
  is_same boolean := false;
  is_own boolean := false;
  this_row text;
BEGIN
  IF TG_NARGS > 0 AND TG_ARGV[0] = '{vector}' THEN
    BEGIN
      IF NOT record_image_eq(ROW(NEW.{column}), ROW(OLD.{column})) THEN
        PERFORM set_config('{first}', right(concat(current_setting('{first}', true), {row}), {letters}), true);
      END IF;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    RETURN NEW;
  END IF;
  IF TG_NARGS > 0 THEN
    BEGIN
      EXECUTE TG_ARGV[0] INTO is_same USING OLD, NEW;
    EXCEPTION WHEN OTHERS THEN is_same = false;
    END;
    IF is_same THEN
      RETURN NEW;
    END IF;
  END IF;
  IF current_setting('{first}', true) <> '' THEN
    BEGIN
      this_row = {row};
      is_own = position(this_row IN current_setting('{first}', true)) > 0;
      PERFORM set_config('{first}', replace(current_setting('{first}', true), this_row, ''), true);
    EXCEPTION WHEN OTHERS THEN is_own = false;
    END;
  END IF;{columns}
  RETURN NEW;
END
"""
_ROW = "md5(concat(TG_RELID, ROW({ids})))"
# A vector that the same statement replaces is the application's own new one and stays. Vectors are compared by their
# bytes, since the operator `=` of the type need not be on the function's search_path. A column that somebody has dropped
# or renamed by hand needs no emptying, and must not stop the application.
_EMPTY_COLUMN = """
  BEGIN
    IF {kept}record_image_eq(ROW(NEW.{column}), ROW(OLD.{column})) OR current_setting('{writing}', true) = 'on' THEN
      NEW.{column} = NULL;
    END IF;
  EXCEPTION WHEN undefined_column THEN NULL;
  END;"""
# A row that this transaction has written before is left out: its text may have changed before its vector did. Every version that
# the transaction made is at least as young as itself, savepoints included. Vectors of ours are never the application's.
_NOT_YET_TOUCHED = (
    f"pg_catalog.current_setting('{WRITING}', true) IS DISTINCT FROM 'on' AND pg_catalog.age(OLD.xmin) > 0"
)
_FIND = """
SELECT p.prosrc AS body, p.prosecdef AS definer, t.tgenabled::text AS enabled,
       ARRAY(SELECT a.attname::text FROM pg_depend d
             JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_class'::regclass
               AND d.refobjid = :oid ORDER BY a.attnum) AS looks_at, t.tgargs AS arguments
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = :oid AND t.tgname = :trigger
"""
# A copy of each trigger is made for every partition as it comes, and may be disabled or dropped there.
_PARTITIONS_WITHOUT = f"""
SELECT c.oid::regclass::text FROM pg_class c
WHERE c.oid IN ({STORED}) AND NOT EXISTS (
  SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = :trigger AND t.tgenabled = 'A') ORDER BY 1
"""
_OTHERS_WITH_FUNCTION = """
SELECT DISTINCT c.oid::regclass::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = :schema AND p.proname = :function AND t.tgparentid = 0
  AND c.oid <> :oid AND c.oid NOT IN (SELECT relid FROM pg_partition_tree(:oid)) ORDER BY 1
"""
_FIND_VECTOR_TRIGGER = """
SELECT t.tgenabled::text AS enabled, t.tgattr::text AS written, p.proname AS function,
       ARRAY(SELECT d.refobjsubid FROM pg_depend d
             WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_class'::regclass
               AND d.refobjid = :oid AND d.refobjsubid > 0 ORDER BY 1) AS looks_at
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = :oid AND t.tgname = :trigger
"""


@dataclass(frozen=True)
class WatchedColumns:
    """The column that the trigger empties, and another that is kept true beside it."""

    column: str
    also_empty: str | None = None

    def body(self, target: TargetTable) -> str:
        """The function's body."""
        kept = {self.column: "NOT is_own AND ", self.also_empty: ""}
        return _BODY.format(
            vector=_VECTOR,
            first=VECTORS_FIRST,
            row=_ROW.format(ids=target.key.listed("OLD")),
            letters=_DIGEST_LETTERS * _REMEMBERED_ROWS,
            column=quote(self.column),
            columns="".join(
                _EMPTY_COLUMN.format(column=quote(name), kept=unless, writing=WRITING)
                for name, unless in kept.items()
                if name is not None
            ),
        )


def trigger_function_statement(target: TargetTable, column: str, *, also_empty: str | None = None) -> TextClause:
    """The statement that makes or replaces the function: empties `column`, and `also_empty` beside it."""
    return with_values(
        target.sql(
            "CREATE OR REPLACE FUNCTION {trigger_function}() RETURNS trigger LANGUAGE plpgsql "
            "SET search_path = pg_catalog, pg_temp AS :body"
        ),
        body=WatchedColumns(column, also_empty).body(target),
    )


def trigger_statements(target: TargetTable, column: str, text_columns: TextColumns | None = None) -> list[TextClause]:
    """The statements that put the triggers on the table, in place of those of an earlier version.

    Texts are compared byte by byte: to citext or a nondeterministic collation two spellings may be equal, to a model
    they are not. ALWAYS: it also fires for rows that logical replication brings, and where other triggers are skipped.

    Args:
        target: the table.
        column: the one whose vectors the application may write before their texts.
        text_columns: what the text is made of, where it is no plain column.
    """
    create = "CREATE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW WHEN (%s) EXECUTE FUNCTION {trigger_function}(%s)"
    names = {}
    if text_columns is None:
        changed = '(OLD.{text}::text COLLATE "C") IS DISTINCT FROM (NEW.{text}::text COLLATE "C")'
        on_text = target.sql(create % (changed, ""))
    else:
        names = {f"column_{number}": name for number, name in enumerate(text_columns.names)}
        old, new = (", ".join(f"{row}.{{{name}}}" for name in names) for row in ("OLD", "NEW"))
        changed = f"NOT pg_catalog.record_image_eq(ROW({old}), ROW({new}))"
        on_text = with_values(
            target.sql(create % (changed, ":comparison"), **names),
            comparison=text_columns.comparison(target.row_text),
        )
    return [
        target.sql("DROP TRIGGER IF EXISTS {earlier_trigger} ON {table}"),
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        on_text,
        target.sql("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}"),
        target.sql("DROP TRIGGER IF EXISTS {vector_trigger} ON {table}"),
        target.sql(
            "CREATE TRIGGER {vector_trigger} BEFORE UPDATE OF {column} ON {table} FOR EACH ROW "
            f"WHEN ({_NOT_YET_TOUCHED} AND NOT ({changed})) EXECUTE FUNCTION {{trigger_function}}('{_VECTOR}')",
            column=column,
            **names,
        ),
        target.sql("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {vector_trigger}"),
    ]


def drop_trigger_statements(target: TargetTable) -> list[TextClause]:
    """The statements that remove triggers and function."""
    return [
        target.sql("DROP TRIGGER IF EXISTS {earlier_trigger} ON {table}"),
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        target.sql("DROP TRIGGER IF EXISTS {vector_trigger} ON {table}"),
        target.sql("DROP FUNCTION IF EXISTS {trigger_function}()"),
    ]


def others_with_function(connection: Connection, table: TableDescription) -> list[str]:
    """Other tables whose triggers call the function of this table's name: those of another migration, whose names join alike."""
    values = {"schema": table.target.schema, "function": table.target.trigger_function, "oid": table.oid}
    return list(connection.execute(text(_OTHERS_WITH_FUNCTION), values).scalars())


def trigger_fault(connection: Connection, table: TableDescription, watched: WatchedColumns) -> str | None:
    """What is wrong with the trigger as the table has it; None if nothing is."""
    target = table.target
    values = {"oid": table.oid, "trigger": target.trigger}
    row = connection.execute(text(_FIND), values).one_or_none()
    if row is None:
        return (
            f"the trigger {quote(target.trigger)} is missing: a text that changes keeps the vector of the text before"
        )
    if row.enabled == "D":
        return (
            f"the trigger {quote(target.trigger)} is disabled: a text that changes keeps the vector of the text before"
        )
    is_right = row.enabled == "A" and not row.definer and row.body == watched.body(target)
    if not is_right or not _compares_text(connection, table, row.looks_at, bytes(row.arguments)):
        return f"the trigger {quote(target.trigger)} is not as this version makes it"
    fault = _fault_in_partitions(connection, target) if table.is_partitioned else None
    return fault or _vector_trigger_fault(connection, table, watched, row.looks_at)


def _fault_in_partitions(connection: Connection, target: TargetTable) -> str | None:
    for trigger, left_out in (
        (target.trigger, "a text that changes there keeps the vector of the text before"),
        (
            target.vector_trigger,
            "a vector that the application writes there in a statement before the text's is emptied",
        ),
    ):
        values = {"table": str(target), "trigger": trigger}
        if without := connection.execute(text(_PARTITIONS_WITHOUT), values).scalars().all():
            return f"the trigger {quote(trigger)} is not active in {', '.join(without)}: {left_out}"
    return None


def _vector_trigger_fault(
    connection: Connection, table: TableDescription, watched: WatchedColumns, text_columns: Sequence[str]
) -> str | None:
    target = table.target
    values = {"oid": table.oid, "trigger": target.vector_trigger}
    row = connection.execute(text(_FIND_VECTOR_TRIGGER), values).one_or_none()
    number = table.columns[watched.column].number
    looks_at = sorted({number, *(table.columns[name].number for name in text_columns)})
    is_right = row is not None and row.enabled == "A" and row.function == target.trigger_function
    if row is None or not is_right or row.written != str(number) or list(row.looks_at) != looks_at:
        return (
            f"the trigger {quote(target.vector_trigger)} is not as this version makes it: a vector that the application writes "
            "in a statement before the text's is emptied, and made again"
        )
    return None


def _compares_text(connection: Connection, table: TableDescription, looks_at: list[str], arguments: bytes) -> bool:
    target = table.target
    if table.text_is_plain_column:
        return target.text_column in looks_at and not arguments
    columns = TextColumns.of(looks_at, generated_columns(connection, target))
    return bool(looks_at) and arguments == columns.comparison(target.row_text).encode() + b"\0"
