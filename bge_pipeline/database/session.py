"""A session of ours: how the settings that our SQL counts on get there and away again.

Where the server is reached directly they are set as the connection begins. Behind a pooler, which may lend a server
connection for one transaction only, they are local to each transaction, until `pooler.require_session` has found that
sessions are kept; then they are set once and taken back as the connection ends.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import psycopg2
from sqlalchemy import Connection, Engine, event

from bge_pipeline.database.session_settings import FIXED_SETTINGS, LIMITS, SEEN_BY_TRIGGERS, STRINGS, Limits
from bge_pipeline.database.sql import quote
from bge_pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812
    from sqlalchemy.engine.interfaces import Dialect

logger = logging.getLogger(__name__)

MARKER = "bge_pipeline.session"
"""A setting of no meaning, by which a connection recognises its backend."""


# The vector type may live in a schema that is not on the role's path (`extensions` on Supabase), or be hidden by a table
# named `vector`. Without pg_catalog the path is as good: it then comes first, and nothing can stand before it.
_LOOK = f"""
SELECT pg_catalog.current_setting('{MARKER}', true), pg_catalog.pg_backend_pid(),
  ARRAY(SELECT name FROM pg_catalog.unnest(%s) name WHERE pg_catalog.current_setting(name, true) IS NOT NULL),
  ARRAY(SELECT name::text FROM (
    SELECT name, place FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY own (name, place)
    WHERE NOT pg_catalog.starts_with(name::text, 'pg_')
    UNION ALL
    SELECT nspname, CASE WHEN pg_catalog.to_regtype('vector') <> typ.oid THEN 0 ELSE 100000 END
    FROM pg_catalog.pg_extension JOIN pg_catalog.pg_namespace n ON n.oid = extnamespace
    JOIN pg_catalog.pg_type typ ON typ.typname = 'vector' AND typ.typnamespace = n.oid
    WHERE extname = 'vector'
  ) schemas ORDER BY place)
"""
_REFUSES_OPTIONS = re.compile(r"parameter|option", re.IGNORECASE)
"""`unsupported startup parameter: options` (PgBouncer), `command-line options` (RDS Proxy), and what others make of it."""


@dataclass
class Session:
    """What is known of one connection.

    Attributes:
        direct: its backend started with this connection's own options, and says the process id that the driver knows.
        statements: what gives it our settings, each without its `SET` or `SET LOCAL`.
        settled: whether they are in force until the connection ends.
    """

    direct: bool
    statements: tuple[str, ...]
    settled: bool = False


_KNOWN: WeakKeyDictionary[RawConnection, Session] = WeakKeyDictionary()
"""Of every connection that is open, whichever engine's."""


def sent_along(connection: Connection) -> str:
    """What to put before a statement that does not go through SQLAlchemy, so that our settings hold for it; else empty."""
    raw = cast("RawConnection", connection.connection.dbapi_connection)
    session = _KNOWN.get(raw)
    return _prelude(session) if session is not None and not session.settled and raw.autocommit else ""


class Sessions:
    """Prepares every connection of an engine, and leaves nothing of ours on one that goes back to a pooler.

    Args:
        engine: whose connections.
        limits: of their waits; None: without end.

    Attributes:
        kept: whether one connection keeps one backend; None as long as nobody has asked (`pooler.require_session`).
        has_roles_limits: whether statement_timeout and lock_timeout stay as role, database or URL set them, for connections
            to come.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self._limits = limits.of_session() if limits is not None else {}
        self.kept: bool | None = None
        self.has_roles_limits = False
        self._dialect = engine.dialect
        self._marker = uuid.uuid4().hex
        self._takes_options = True
        self._strings_were_off = False
        event.listen(engine, "do_connect", self._dial)
        event.listen(engine, "connect", _without_transaction, insert=True)
        event.listen(engine, "connect", self._look)
        event.listen(engine, "checkout", self._settle)
        event.listen(engine, "close", self._leave)
        event.listen(engine, "do_execute", self._send_along)

    def is_direct(self, connection: Connection) -> bool:
        """Whether nothing about the connection looks as if there were a pooler in between."""
        return self._of(connection).direct

    def begin(self, connection: Connection) -> None:
        """Give our settings to the transaction that has just begun, where they cannot be the session's."""
        if not self._of(connection).settled:
            connection.exec_driver_sql(_escaped(_prelude(self._of(connection))))

    def roles_own_settings(self) -> str:
        """Statements by which the rest of a transaction sees what the role itself has set, for the application's triggers."""
        own = "".join(f"SET LOCAL {name} TO DEFAULT; " for name in SEEN_BY_TRIGGERS if name != STRINGS.name)
        return own + ("SET LOCAL standard_conforming_strings = off; " if self._strings_were_off else "")

    def _dial(self, dialect: Dialect, _record: object, arguments: Any, parameters: dict[str, Any]) -> Any:
        """Connect with our marker among the options, and without where a pooler refuses those."""
        if self._takes_options:
            try:
                return self._dial_with_options(dialect, arguments, parameters)
            except psycopg2.OperationalError as error:
                if not _REFUSES_OPTIONS.search(str(error)):
                    raise
                logger.debug("the server takes no options, as poolers do: %s", str(error).strip())
                self._takes_options = False
        return dialect.connect(*arguments, **parameters)

    def _dial_with_options(self, dialect: Dialect, arguments: Any, parameters: dict[str, Any]) -> Any:
        own = parameters.get("options") or os.environ.get("PGOPTIONS", "")

        def dial() -> RawConnection:
            strings = " -c standard_conforming_strings=on" if self._strings_were_off else ""
            # The look at the connection comes before our settings. It may begin later, on a busy machine, and take longer
            # than the role's own limits allow.
            limits = " -c idle_session_timeout=0"
            if not self.has_roles_limits:
                limits += f" -c statement_timeout={self._limits.get('statement_timeout', '0')}"
            options = f"{own} -c {MARKER}={self._marker}{limits}{strings}".strip()
            return cast("RawConnection", dialect.connect(*arguments, **parameters | {"options": options}))

        connection = dial()
        if connection.get_parameter_status("standard_conforming_strings") == "off":
            # The driver asks once, as it connects, how it has to write strings: setting it later would be too late.
            connection.close()
            self._strings_were_off = True
            connection = dial()
        return connection

    def _look(self, connection: RawConnection, _record: object) -> None:
        """See what kind of connection this is; settle it if it is the server's own."""
        with connection.cursor() as cursor:
            cursor.execute(_LOOK, ([setting.name for setting in FIXED_SETTINGS],))
            marker, pid, known, path = cursor.fetchone()
        if connection.get_parameter_status("standard_conforming_strings") == "off":
            raise ConfigurationError(
                "expected standard_conforming_strings = on behind a pooler that takes no options, got off",
                state="nothing was changed",
                next_step="connect to PostgreSQL itself, or: ALTER ROLE ... SET standard_conforming_strings = on;",
            )
        values = {setting.name: setting.value for setting in FIXED_SETTINGS} | self._limits
        left = LIMITS if self.has_roles_limits else ()
        settings = [f"{name} = '{value}'" for name, value in values.items() if name in known and name not in left]
        schemas = ", ".join(dict.fromkeys(quote(name) for name in path)) or "''"
        session = Session(
            direct=marker == self._marker and pid == connection.get_backend_pid(),
            statements=(*settings, f"search_path = {schemas}"),
        )
        _KNOWN[connection] = session
        # What it goes back to after autocommit; SQLAlchemy has just asked the role for it.
        self._dialect.default_isolation_level = "READ COMMITTED"
        if session.direct:
            _make_settled(connection, session)
        connection.autocommit = False

    def _settle(self, connection: RawConnection, _record: object, _proxy: object) -> None:
        session = _KNOWN[connection]
        if self.kept and not session.settled:
            connection.autocommit = True
            _make_settled(connection, session)
            connection.autocommit = False

    def _send_along(self, cursor: Any, sql: str, parameters: Any, _context: object) -> bool:
        """Send our settings with each statement of an autocommit connection, where they cannot be the session's.

        PostgreSQL runs the statements of one message as one transaction: what is local to it reaches nobody else. Says
        whether it ran the statement; SQLAlchemy asks last of all, so that nothing stands before the settings.
        """
        session = _KNOWN.get(cursor.connection)
        if session is None or session.settled or not cursor.connection.autocommit:
            return False
        cursor.execute(_escaped(_prelude(session)) + sql, parameters)
        return True

    def _of(self, connection: Connection) -> Session:
        return _KNOWN[cast("RawConnection", connection.connection.dbapi_connection)]

    def _leave(self, connection: RawConnection, _record: object) -> None:
        """Give a pooler's connection back as a new one, settings, locks and temporary tables gone."""
        session = _KNOWN.get(connection)
        if session is None or session.direct or not session.settled or connection.closed:
            return
        try:
            connection.rollback()
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("DISCARD ALL")
        except psycopg2.Error as error:
            logger.debug("a connection ended before its session could be cleared, and the session with it: %s", error)


def _without_transaction(connection: RawConnection, _record: object) -> None:
    """So that even a pooler that allows no transactions lets us look; `_look` ends it."""
    connection.autocommit = True


def _make_settled(connection: RawConnection, session: Session) -> None:
    with connection.cursor() as cursor:
        cursor.execute("".join(f"SET {statement}; " for statement in session.statements))
    session.settled = True


def _prelude(session: Session) -> str:
    local = "".join(f"SET LOCAL {statement}; " for statement in session.statements)
    return "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; " + local


def _escaped(prelude: str) -> str:
    """As the driver wants it where it looks for placeholders."""
    return prelude.replace("%", "%%")
