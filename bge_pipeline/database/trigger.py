"""The trigger that empties a row's vector when its text changes, so that no text keeps another text's vector."""

from __future__ import annotations

from sqlalchemy import TextClause

from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable

# A vector that the same statement replaces is the application's own new one and stays. Vectors are compared as text
# because the operator `=` of the type need not be on the application's search_path.
_BODY = """
BEGIN
  IF NEW.{column}::text IS NOT DISTINCT FROM OLD.{column}::text THEN
    NEW.{column} = NULL;
  END IF;
  {also}
  DELETE FROM {quarantine} WHERE row_id = OLD.{id};
  RETURN NEW;
END
"""


def trigger_function_statement(target: TargetTable, column: str, *, also_empty: str | None = None) -> TextClause:
    """The statement that makes or replaces the function: empties `column`, and `also_empty` beside it.

    SECURITY DEFINER, since the application's role need not have rights on the quarantine table.
    """
    body = _BODY.format(
        column=quote(column),
        also=f"NEW.{quote(also_empty)} = NULL;" if also_empty else "",
        quarantine=quote(target.schema, target.quarantine_table),
        id=quote(target.id_column),
    )
    return with_values(
        target.sql(
            "CREATE OR REPLACE FUNCTION {trigger_function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            "SET search_path = pg_catalog, pg_temp AS :body"
        ),
        body=body,
    )


def trigger_statements(target: TargetTable) -> list[TextClause]:
    """The statements that put the trigger on the table."""
    return [
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        target.sql(
            "CREATE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW "
            "WHEN (OLD.{text} IS DISTINCT FROM NEW.{text}) EXECUTE FUNCTION {trigger_function}()"
        ),
    ]


def drop_trigger_statements(target: TargetTable) -> list[TextClause]:
    """The statements that remove trigger and function."""
    return [
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        target.sql("DROP FUNCTION IF EXISTS {trigger_function}()"),
    ]
