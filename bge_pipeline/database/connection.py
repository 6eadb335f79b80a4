"""Connections: URL spellings, transactions, autocommit, and errors a person can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError, ProgrammingError

from bge_pipeline.database.embedded import start_embedded_postgres
from bge_pipeline.database.login import refuses_login
from bge_pipeline.errors import DatabaseUnavailable, LoginRefused, MissingPrivilege

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812

    from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

# As pg_dump does: an index build or a count of every row takes what it takes, whatever the role's own limit is.
_NO_TIME_LIMITS = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
# The vector type may live in a schema that is not on the role's path (`extensions` on Supabase).
_FIND_VECTOR_SCHEMA = """
SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(nspname), false)
FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'vector' AND NOT nspname = ANY (current_schemas(true))
"""


def normalise_url(url: str | URL) -> URL:
    """The URL for psycopg2: `postgres://` and `postgresql://` name no driver, and SQLAlchemy 2.1 would take psycopg 3."""
    if isinstance(url, str) and url.startswith("postgres:"):
        url = "postgresql:" + url.removeprefix("postgres:")
    url = make_url(url).set(drivername="postgresql+psycopg2")
    password = url.query.get("password")
    if isinstance(password, str):
        # Where libpq takes it too, but where nothing would hide it from a log.
        url = url.difference_update_query(["password"]).set(password=password)
    return url


def chosen_url(settings: Settings) -> str:
    """DATABASE_URL, or the URL of the embedded PostgreSQL, which is started where it does not run."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return start_embedded_postgres(embedded_folder(settings))


def embedded_folder(settings: Settings) -> Path:
    """Where the embedded PostgreSQL keeps its data, whether or not it is there yet."""
    return settings.home / "postgres"


class Database:
    """One PostgreSQL database; safe to share between threads."""

    def __init__(self, url: str | URL, *, application_name: str = "bge-pipeline") -> None:
        self.url = normalise_url(url)
        self.engine = create_engine(
            self.url, pool_pre_ping=True, pool_size=4, connect_args={"application_name": application_name}
        )
        event.listen(self.engine, "connect", _prepare_session)

    @classmethod
    def from_settings(cls, settings: Settings) -> Database:
        """The database of DATABASE_URL, or the embedded one."""
        return cls(chosen_url(settings))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end and rolled back on any error."""
        with self._reachable(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection without a transaction block, for CREATE INDEX CONCURRENTLY and single reads."""
        with self._reachable():
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                yield connection
            finally:
                self._give_back(connection)

    def require_answer(self) -> None:
        """Return if the server lets this user in now.

        Raises:
            DatabaseUnavailable: it does not answer, or (LoginRefused) lets nobody in.
        """
        with self.autocommit():
            pass

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _give_back(self, connection: Connection) -> None:
        try:
            connection.close()
        except psycopg2.Error as error:
            # The server ended it after its last statement, which is no failure of anything; the pool has lost count.
            logger.debug("a connection was ended before it was given back: %s", error)
            self.engine.dispose(close=False)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except ProgrammingError as error:
            if not isinstance(error.orig, InsufficientPrivilege):
                raise
            raise MissingPrivilege(
                f"the role {self.url.username or 'of this connection'} may not do this: {str(error.orig).strip()}",
                state="the statement was refused; what was committed before it stays",
                next_step="bge-pipeline plan lists every privilege that is missing, with the statement that grants it",
            ) from error
        except OperationalError as error:
            if not error.connection_invalidated and getattr(error.orig, "pgcode", None) is not None:
                raise
            if refuses_login(str(error.orig)):
                raise LoginRefused(
                    f"{self.url.render_as_string(hide_password=True)} lets nobody in: {str(error.orig).strip()}",
                    state="what was committed before stays",
                    next_step="correct user, password and database in DATABASE_URL, then run the same command again",
                ) from error
            raise DatabaseUnavailable(
                f"cannot reach {self.url.render_as_string(hide_password=True)}: {str(error.orig).strip()}",
                next_step="check DATABASE_URL and that the server takes connections, then run the same command again",
            ) from error

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)


def _prepare_session(connection: RawConnection, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_NO_TIME_LIMITS)
        cursor.execute(_FIND_VECTOR_SCHEMA)
    connection.commit()


def server_version(connection: Connection) -> int:
    """PostgreSQL's version as `server_version_num`, for example 180004."""
    return int(connection.execute(text("SHOW server_version_num")).scalar_one())
