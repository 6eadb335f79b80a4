"""A pooler that lends a server connection for a transaction is found out, and finds nothing of ours on what it lent."""

from __future__ import annotations

import io
import threading
from contextlib import ExitStack

import psycopg2
import pytest
from sqlalchemy import text

from bge_pipeline.database.binary_copy import run_copy
from bge_pipeline.database.connection import Database
from bge_pipeline.database.pooler import require_session, session_obstacle
from bge_pipeline.database.session import MARKER
from bge_pipeline.errors import ConfigurationError, SessionNotKept
from bge_pipeline_tests.pooler import SERVERS, behind, pgbouncer
from bge_pipeline_tests.support import execute, scalar, statements_of, wait_until

pytestmark = pytest.mark.pgvector

IGNORES_OPTIONS = {"ignore_startup_parameters": "options"}
TRANSACTION_MODES = [("transaction", {}), ("transaction", IGNORES_OPTIONS), ("statement", {})]


@pytest.fixture
def pooled(server_url, database):
    """Opens the test's database through a pooler of that mode."""
    with ExitStack() as opened:

        def open_(mode, **options):
            url = opened.enter_context(pgbouncer(server_url, mode, **options))
            return opened.enter_context(Database(url.set(database=database.url.database)))

        yield open_


def test_a_server_reached_directly_keeps_its_sessions(database):
    require_session(database)
    with database.engine.connect() as connection:
        assert database.sessions.is_direct(connection)


@pytest.mark.parametrize(("mode", "options"), TRANSACTION_MODES)
def test_a_pooler_that_lends_for_a_transaction_is_refused_and_what_to_set_is_named(pooled, mode, options):
    through = pooled(mode, **options)
    with pytest.raises(SessionNotKept) as refused:
        require_session(through)
    assert refused.value.exit_code == 2
    assert refused.value.state == "nothing was changed"
    assert "pool_mode = session" in refused.value.next_step
    if mode == "transaction":
        assert behind(through.url, through.url.database) == []


@pytest.mark.parametrize("options", [{}, IGNORES_OPTIONS], ids=["refuses options", "ignores options"])
def test_a_pooler_that_lends_for_a_session_is_accepted(pooled, options):
    through = pooled("session", **options)
    require_session(through)
    with through.transaction() as connection:
        assert not through.sessions.is_direct(connection)


@pytest.mark.parametrize("round_robin", ["0", "1"])
def test_a_pooler_that_is_busy_with_others_is_found_out_too(pooled, round_robin):
    """The application takes and returns every connection all the while, so that luck has its chance."""
    with busy(pooled("transaction", server_round_robin=round_robin)) as through:
        for _ in range(10):
            with Database(through.url) as fresh:
                assert isinstance(session_obstacle(fresh), SessionNotKept)


def test_a_pooler_with_a_single_connection_to_the_server_is_found_out_too(pooled):
    assert isinstance(session_obstacle(pooled("transaction", default_pool_size="1")), SessionNotKept)


def test_it_is_asked_once(database):
    require_session(database)
    assert statements_of(database, lambda _: require_session(database)) == []


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("aws-0-eu-central-1.pooler.supabase.com", "port 5432 of aws-0-eu-central-1.pooler.supabase.com"),
        ("ep-cool-rain-123456-pooler.eu-central-1.aws.neon.tech", "ep-cool-rain-123456.eu-central-1.aws.neon.tech"),
        ("db.example.org", "pool_mode = session"),
    ],
)
def test_the_advice_knows_common_hosts(host, advice):
    with Database(f"postgresql://me:hunter2@{host}:6543/postgres") as database:
        database.sessions.kept = False
        refusal = session_obstacle(database)
    assert advice in refusal.next_step
    assert "hunter2" not in str(refusal)


@pytest.mark.parametrize(("mode", "options"), TRANSACTION_MODES)
def test_reading_goes_on_with_our_settings_and_none_of_them_stays(pooled, database, mode, options):
    execute(database, f"ALTER DATABASE {database.url.database} SET extra_float_digits = -10")
    through = pooled(mode, **options)
    with through.autocommit() as connection:
        assert connection.execute(text("SELECT CAST(:n AS float8)::text"), {"n": 0.1234567890123456}).scalar_one() == (
            "0.1234567890123456"
        )
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"
    if mode == "transaction":
        with through.transaction() as connection:
            assert connection.execute(text("SHOW jit")).scalar_one() == "off"
            assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
        assert behind(through.url, through.url.database) == []


@pytest.mark.parametrize(("mode", "options"), TRANSACTION_MODES)
def test_a_copy_has_our_settings_too(pooled, database, mode, options):
    execute(database, f"ALTER DATABASE {database.url.database} SET extra_float_digits = -10")
    through = pooled(mode, **options)
    read = io.BytesIO()
    with through.autocommit() as connection:
        run_copy(connection, "COPY (SELECT '50%', 0.1234567890123456::float8) TO STDOUT", read)
    assert read.getvalue() == b"50%\t0.1234567890123456\n"


def test_schemas_with_awkward_names_are_on_the_path_behind_a_pooler_too(pooled, database):
    execute(database, 'CREATE SCHEMA "50% \'off\'; ""x"""')
    execute(database, 'CREATE TABLE "50% \'off\'; ""x""".found (n int)')
    execute(database, f'ALTER DATABASE {database.url.database} SET search_path = "50% \'off\'; ""x"""')
    through = pooled("transaction")
    with through.autocommit() as connection:
        assert connection.execute(text("SELECT count(*) FROM found WHERE :yes"), {"yes": True}).scalar_one() == 0
    with through.transaction() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM found").scalar_one() == 0
        assert connection.execute(text("SELECT '[1]'::vector::text")).scalar_one() == "[1]"


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_strings_that_are_not_standard_are_refused_where_they_cannot_be_set_in_time(pooled, database, mode):
    execute(database, f"ALTER DATABASE {database.url.database} SET standard_conforming_strings = off")
    with pytest.raises(ConfigurationError, match="standard_conforming_strings"):
        scalar(pooled(mode), "SELECT 1")


class TestOnAPoolOfSessions:
    """One that, against its manual, clears nothing itself."""

    @pytest.fixture
    def through(self, pooled):
        database = pooled("session", server_reset_query="")
        require_session(database)
        return database

    def test_the_marker_is_taken_off_again(self, through):
        look = text(f"SELECT current_setting('{MARKER}', true)")
        with through.autocommit() as one, through.autocommit() as other:
            assert {connection.execute(look).scalar_one() for connection in (one, other)} == {"", None}

    def test_statements_that_no_transaction_may_hold_are_run(self, through):
        with through.autocommit() as connection:
            connection.execute(text("CREATE INDEX CONCURRENTLY ours ON segments (start_sec)"))
            assert connection.execute(text("SHOW jit")).scalar_one() == "off"

    @pytest.mark.parametrize("way_out", ["close", "invalidate"])
    def test_nothing_stays_on_a_connection_that_is_given_back(self, through, way_out):
        with through.engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(7), set_config('lock_timeout', '300ms', false)"))
            connection.execute(text("CREATE TEMPORARY TABLE ours (n int)"))
            connection.commit()
            assert behind_one(connection)
            if way_out == "invalidate":
                connection.invalidate()
        through.close()
        wait_until(lambda: behind(through.url, through.url.database) == [])

    def test_a_connection_that_broke_is_left_to_the_pooler(self, through):
        with through.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            connection.connection.dbapi_connection.close()
            connection.invalidate()
        assert scalar(through, "SELECT 1") == 1


def behind_one(connection) -> bool:
    """Whether the connection itself shows what `behind` looks for."""
    held = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
    return connection.execute(held).scalar_one() == 1


class busy:  # noqa: N801 - reads as what the pooler is
    """An application whose threads take a connection of the pooler each, hold it for a moment, and take another."""

    def __init__(self, through: Database) -> None:
        self._through = through
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(SERVERS)]

    def __enter__(self) -> Database:
        for thread in self._threads:
            thread.start()
        return self._through

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        dsn = self._through.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg2.connect(dsn)
        with connection.cursor() as cursor:
            while not self._stop.is_set():
                cursor.execute("SELECT pg_sleep(0.002)")
                connection.commit()
        connection.close()
