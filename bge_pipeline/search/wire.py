"""One statement on the wire: run-time parameters and query travel together, as one transaction of the server's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Row, Select, event

from bge_pipeline.search.scan import Session

# A swap that commits while the query waits for the table must be seen by the query whole, names and notes alike.
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY; "


def fetch(connection: Connection, session: Session, statement: Select[Any]) -> Sequence[Row[Any]]:
    """The rows of `statement`, run with `session`.

    PostgreSQL runs the statements of one message as one transaction, so SET LOCAL holds for the query and for nothing
    after it, behind a pooler too.

    Args:
        connection: an autocommit connection (`Database.autocommit`).
        session: run-time parameters by name.
        statement: what to run.
    """
    return _execute(connection, _prefix(session), statement).all()


def fetch_plan(connection: Connection, session: Session, statement: Select[Any]) -> list[str]:
    """The lines of the server's plan for `statement`, with `session` as `fetch` would run it."""
    # EXPLAIN's one column is none of the statement's: read past SQLAlchemy, which expects those.
    cursor: Any = _execute(connection, _prefix(session) + "EXPLAIN ", statement).cursor
    return [line for (line,) in cursor.fetchall()]


def _prefix(session: Session) -> str:
    return _READ_COMMITTED + "".join(f"SET LOCAL {name} = '{value}'; " for name, value in session.items())


def _execute(connection: Connection, prefix: str, statement: Select[Any]) -> CursorResult[Any]:
    def prepend(
        _connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _many: bool
    ) -> tuple[str, Any]:
        return prefix + sql, parameters

    event.listen(connection, "before_cursor_execute", prepend, retval=True)
    try:
        return connection.execute(statement)
    finally:
        event.remove(connection, "before_cursor_execute", prepend)
