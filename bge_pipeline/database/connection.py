"""Connections: URL spellings, transactions, autocommit, and errors a person can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import psycopg2
from psycopg2.errors import DiskFull as ServerDiskFull
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from bge_pipeline.database.giving_way import give_way
from bge_pipeline.database.local_server import start_embedded_postgres
from bge_pipeline.database.login import refuses_login
from bge_pipeline.database.session import Sessions
from bge_pipeline.database.session_settings import Limits
from bge_pipeline.errors import ConfigurationError, DatabaseUnavailable, DiskFull, LoginRefused, MissingPrivilege
from bge_pipeline.forked import in_forked_child
from bge_pipeline.postgres_url import parse_url, place, shown

if TYPE_CHECKING:
    from bge_pipeline.settings import DatabaseSettings, HomeSettings

logger = logging.getLogger(__name__)

_SIGNS_OF_LIFE = {"keepalives_idle": 60, "keepalives_interval": 15, "keepalives_count": 4, "tcp_user_timeout": 120_000}
"""Seconds, and milliseconds of the last. Balancers and address translators forget a connection on which nothing was said for some
minutes, as while an index is built or a model computes; and whoever hears nothing of a server that is gone waits two hours by
the system's defaults."""


def normalise_url(url: str | URL) -> URL:
    """The URL for psycopg2: `postgres://` and `postgresql://` name no driver, and SQLAlchemy 2.1 would take psycopg 3.

    Raises:
        ConfigurationError: it is no URL, or one in which a password may stand where nothing would hide it.
    """
    url = parse_url(url).set(drivername="postgresql+psycopg2")
    password = url.query.get("password")
    if isinstance(password, str):
        # Where libpq takes it too, but where nothing would hide it from a log.
        url = url.difference_update_query(["password"]).set(password=password)
    return url


def chosen_url(settings: DatabaseSettings) -> str:
    """DATABASE_URL, or the URL of the embedded PostgreSQL, which is started where it does not run."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return start_embedded_postgres(embedded_folder(settings))


def embedded_folder(settings: HomeSettings) -> Path:
    """Where the embedded PostgreSQL keeps its data, whether or not it is there yet."""
    return settings.home / "postgres"


_OPEN: WeakSet[Database] = WeakSet()


class Database:
    """One PostgreSQL database; safe to share between threads.

    Args:
        url: of the database.
        application_name: under which others see its sessions.
        limits: of what its sessions wait for; None: without end, as the phases need it.
        gives_way: whether `give_way` does.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        application_name: str = "bge-pipeline",
        limits: Limits | None = None,
        gives_way: bool = False,
    ) -> None:
        self.url = normalise_url(url)
        self._gives_way = gives_way
        connect_args: dict[str, str | int] = {"application_name": application_name, "client_encoding": "UTF8"}
        defaults = _SIGNS_OF_LIFE | ({"connect_timeout": limits.connect} if limits is not None else {})
        connect_args |= {name: value for name, value in defaults.items() if name not in self.url.query}
        self.engine = create_engine(self.url, pool_pre_ping=True, pool_size=4, connect_args=connect_args)
        self.sessions = Sessions(self.engine, limits)
        self._unpooled = create_engine(self.url, poolclass=NullPool, connect_args=connect_args)
        self._unpooled_sessions = Sessions(self._unpooled, limits)
        _OPEN.add(self)

    @classmethod
    def from_settings(cls, settings: DatabaseSettings, *, limits: Limits | None = None) -> Database:
        """The database of DATABASE_URL, or the embedded one."""
        return cls(chosen_url(settings), limits=limits, gives_way=settings.session_priority == "idle")

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the server is reached over a socket of this machine, as far as its URL tells."""
        host = self.url.query.get("host") or self.url.host or ""
        return isinstance(host, str) and (host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1"))

    @property
    def place(self) -> str:
        """Server and database in short, to tell them from others: `host:5432/database`, as the URL spells them."""
        return place(self.url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end and rolled back on any error."""
        with self.reachable(), self.engine.begin() as connection:
            self.sessions.begin(connection)
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection without a transaction block, for CREATE INDEX CONCURRENTLY and single reads."""
        with self.reachable():
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                yield connection
            finally:
                self._give_back(connection)

    @contextmanager
    def lent(self) -> Iterator[Connection]:
        """A connection whose transactions the caller begins and ends, as Alembic does."""
        with self.reachable():
            connection = self.engine.connect()
            try:
                yield connection
            except BaseException:
                connection.invalidate()  # it may have ended meanwhile, which its way back into the pool would tell in a traceback
                raise
            finally:
                self._give_back(connection)

    def own_session(self, application_name: str) -> Connection:
        """A session that belongs to the caller alone, known to others by its name; ends when the caller closes it."""
        self._unpooled_sessions.kept = self.sessions.kept
        with self.reachable():
            connection = self._unpooled.connect()
            with connection.begin():
                connection.execute(
                    text("SELECT set_config('application_name', :name, false)"), {"name": application_name}
                )
            return connection

    def give_way(self, connection: Connection) -> bool:
        """Let that session take only the processor time that nobody else wants, if SESSION_PRIORITY says so and it can be done.

        Returns:
            Whether it does now, and so must end: no later user of the pool is to get it.
        """
        return self._gives_way and give_way(connection)

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
    def reachable(self) -> Iterator[None]:
        """Errors of PostgreSQL in the block that a person can act on become errors of ours, which say how."""
        try:
            yield
        except ProgrammingError as error:
            if error.statement is None and str(error.orig).startswith("invalid dsn"):
                raise ConfigurationError(
                    f"{self}: {str(error.orig).strip()}",
                    state="no server was asked",
                    next_step="correct the parameters behind the ? of DATABASE_URL, then run the same command again",
                ) from error
            if not isinstance(error.orig, InsufficientPrivilege):
                raise
            raise MissingPrivilege(
                f"the role {self.url.username or 'of this connection'} may not do this: {str(error.orig).strip()}",
                state="the statement was refused; what was committed before it stays",
                next_step="bge-pipeline plan lists every privilege that is missing, with the statement that grants it",
            ) from error
        except DBAPIError as error:
            if is_disk_full(error):
                raise disk_full(error) from error
            if error.connection_invalidated and error.statement is not None:
                raise DatabaseUnavailable(
                    f"{self} ended the connection: {str(error.orig).strip()}",
                    state="what was committed before it stays",
                    next_step="see in its log whether it went down, an administrator ended the connection, or a time limit "
                    "of the server or of a pooler did; then run the same command again",
                ) from error
            refused = not isinstance(error, OperationalError) or getattr(error.orig, "pgcode", None) is not None
            if refused and not error.connection_invalidated:
                raise
            if refuses_login(str(error.orig)):
                raise LoginRefused(
                    f"{self} lets nobody in: {str(error.orig).strip()}",
                    state="what was committed before stays",
                    next_step="correct user, password and database in DATABASE_URL, then run the same command again",
                ) from error
            raise DatabaseUnavailable(
                f"cannot reach {self}: {str(error.orig).strip()}",
                next_step="check DATABASE_URL and that the server takes connections, then run the same command again",
            ) from error

    def __str__(self) -> str:
        return shown(self.url)


def is_disk_full(error: BaseException) -> bool:
    """Whether the server had no space left for what a statement writes."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, ServerDiskFull) and not lacks_shared_memory(error)


def lacks_shared_memory(error: DBAPIError) -> bool:
    """Whether a parallel build ended since it keeps its graph in /dev/shm, which containers make 64 MB small."""
    return "shared memory segment" in str(error.orig)


def disk_full(error: DBAPIError, *, state: str = "what was committed before it stays") -> DiskFull:
    """The error that says so."""
    return DiskFull(
        f"the server has no space left: {str(error.orig).strip().splitlines()[0]}",
        state=state,
        next_step="free space on the server, then run the same command again; bge-pipeline plan says how much is needed",
    )


def server_version(connection: Connection) -> int:
    """PostgreSQL's version as `server_version_num`, for example 180004."""
    return int(connection.execute(text("SHOW server_version_num")).scalar_one())


def _leave_to_parent() -> None:
    """A forked child dials anew: two processes on one connection read each other's answers."""
    for database in list(_OPEN):
        database.engine.dispose(close=False)


in_forked_child(_leave_to_parent)
