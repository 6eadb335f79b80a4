"""The trigger that empties a row's vector when its text changes, so that no text keeps another text's vector."""

from __future__ import annotations

from sqlalchemy import TextClause

from bge_pipeline.database.sql import quote, with_values
from bge_pipeline.database.target import TargetTable

_BODY = """
BEGIN{columns}
  DELETE FROM {quarantine} WHERE row_id = OLD.{id};{companion}
  RETURN NEW;
END
"""
# A vector that the same statement replaces is the application's own new one and stays. Vectors are compared as text
# because the operator `=` of the type need not be on the function's search_path.
_EMPTY_COLUMN = """
  IF NEW.{column}::text IS NOT DISTINCT FROM OLD.{column}::text THEN
    NEW.{column} = NULL;
  END IF;"""


_RELEASE_COMPANION = """
  DELETE FROM {quarantine} WHERE row_id = OLD.{id};"""


def trigger_function_statement(
    target: TargetTable, column: str, *, also_empty: str | None = None, has_companion: bool = False
) -> TextClause:
    """The statement that makes or replaces the function: empties `column`, and `also_empty` beside it.

    `has_companion`: `also_empty` is a companion column, whose quarantine table is there.
    SECURITY DEFINER, since the application's role need not have rights on the quarantine table.
    """
    columns = [column] if also_empty is None else [column, also_empty]
    body = _BODY.format(
        columns="".join(_EMPTY_COLUMN.format(column=quote(name)) for name in columns),
        quarantine=quote(target.schema, target.quarantine_table),
        id=quote(target.id_column),
        companion=_RELEASE_COMPANION.format(
            quarantine=quote(target.schema, target.companion.quarantine_table), id=quote(target.id_column)
        )
        if has_companion
        else "",
    )
    return with_values(
        target.sql(
            "CREATE OR REPLACE FUNCTION {trigger_function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            "SET search_path = pg_catalog, pg_temp AS :body"
        ),
        body=body,
    )


def trigger_statements(target: TargetTable) -> list[TextClause]:
    """The statements that put the trigger on the table.

    Texts are compared byte by byte: to citext or a nondeterministic collation two spellings may be equal, to a model
    they are not. ALWAYS: it also fires for rows that logical replication brings.
    """
    return [
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
        target.sql("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
        target.sql("DROP FUNCTION IF EXISTS {trigger_function}()"),
    ]
