"""The trigger that empties a row's vector when its text changes, so that no text keeps another text's vector.

It sets columns of the row at hand to NULL and touches nothing else, so that there is nothing in it that could fail, wait
or want a right that the application's role does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable

WRITING = "bge_pipeline.writing"
"""Set to `on` in transactions that write vectors of ours: a text that changes in the same statement was changed by a
trigger of the application, and the vector at hand is that of the text before."""

_BODY = """
BEGIN{columns}
  RETURN NEW;
END
"""
# A vector that the same statement replaces is the application's own new one and stays. Vectors are compared by their
# bytes, since the operator `=` of the type need not be on the function's search_path. A column that somebody has dropped
# or renamed by hand needs no emptying, and must not stop the application.
_EMPTY_COLUMN = """
  BEGIN
    IF record_image_eq(ROW(NEW.{column}), ROW(OLD.{column})) OR current_setting('{writing}', true) = 'on' THEN
      NEW.{column} = NULL;
    END IF;
  EXCEPTION WHEN undefined_column THEN NULL;
  END;"""
_FIND = """
SELECT p.prosrc AS body, p.prosecdef AS definer, t.tgenabled::text AS enabled,
       EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_trigger'::regclass AND objid = t.oid
               AND refclassid = 'pg_class'::regclass AND refobjid = :oid AND refobjsubid = :text) AS looks_at_text
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = :oid AND t.tgname = :trigger
"""


@dataclass(frozen=True)
class WatchedColumns:
    """The column that the trigger empties, and another that is kept true beside it."""

    column: str
    also_empty: str | None = None

    @property
    def body(self) -> str:
        """The function's body."""
        names = [self.column] if self.also_empty is None else [self.column, self.also_empty]
        return _BODY.format(columns="".join(_EMPTY_COLUMN.format(column=quote(n), writing=WRITING) for n in names))


def trigger_function_statement(target: TargetTable, column: str, *, also_empty: str | None = None) -> TextClause:
    """The statement that makes or replaces the function: empties `column`, and `also_empty` beside it."""
    return with_values(
        target.sql(
            "CREATE OR REPLACE FUNCTION {trigger_function}() RETURNS trigger LANGUAGE plpgsql "
            "SET search_path = pg_catalog, pg_temp AS :body"
        ),
        body=WatchedColumns(column, also_empty).body,
    )


def trigger_statements(target: TargetTable) -> list[TextClause]:
    """The statements that put the trigger on the table, in place of one of an earlier version.

    Texts are compared byte by byte: to citext or a nondeterministic collation two spellings may be equal, to a model
    they are not. ALWAYS: it also fires for rows that logical replication brings, and where other triggers are skipped.
    """
    return [
        target.sql("DROP TRIGGER IF EXISTS {earlier_trigger} ON {table}"),
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        target.sql(
            "CREATE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW "
            'WHEN ((OLD.{text}::text COLLATE "C") IS DISTINCT FROM (NEW.{text}::text COLLATE "C")) '
            "EXECUTE FUNCTION {trigger_function}()"
        ),
        target.sql("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}"),
    ]


def drop_trigger_statements(target: TargetTable) -> list[TextClause]:
    """The statements that remove trigger and function."""
    return [
        target.sql("DROP TRIGGER IF EXISTS {earlier_trigger} ON {table}"),
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        target.sql("DROP FUNCTION IF EXISTS {trigger_function}()"),
    ]


def trigger_fault(connection: Connection, table: TableDescription, watched: WatchedColumns) -> str | None:
    """What is wrong with the trigger as the table has it; None if nothing is."""
    target = table.target
    number = table.columns[target.text_column].number
    values = {"oid": table.oid, "trigger": target.trigger, "text": number}
    row = connection.execute(text(_FIND), values).one_or_none()
    if row is None:
        return (
            f"the trigger {quote(target.trigger)} is missing: a text that changes keeps the vector of the text before"
        )
    if row.enabled == "D":
        return (
            f"the trigger {quote(target.trigger)} is disabled: a text that changes keeps the vector of the text before"
        )
    if row.enabled != "A" or row.definer or row.body != watched.body or not row.looks_at_text:
        return f"the trigger {quote(target.trigger)} is not as this version makes it"
    return None
