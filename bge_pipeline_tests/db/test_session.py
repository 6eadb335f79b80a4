"""Our SQL means the same whatever role, database and server have set; the application's triggers keep what they know."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from bge_pipeline.database import session
from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.database.session_settings import FIXED_SETTINGS, LOOK, Limits
from bge_pipeline.errors import DatabaseUnavailable
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import ENCODER, application, execute, fill, fill_and_swap, scalar, swap, wrong_vectors

pytestmark = pytest.mark.pgvector

HOSTILE = {
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "client_encoding": "LATIN1",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "jit": "on",
    "jit_above_cost": "0",
    "statement_timeout": "'40ms'",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'40ms'",
    "idle_session_timeout": "'40ms'",
    "search_path": "''",
}


def configure(database, **settings):
    """Settings of the database for every connection from now on."""
    for name, value in settings.items():
        execute(database, f"ALTER DATABASE {database.url.database} SET {name} = {value}")


def test_sessions_of_a_look_wait_for_nothing_long_and_those_of_a_phase_as_long_as_it_takes(database, database_url):
    limited = Database(database_url, limits=LOOK)
    try:
        for each, lock, statement in ((database, "0", "0"), (limited, "3s", "45s")):
            assert scalar(each, "SELECT current_setting('lock_timeout')") == lock
            assert scalar(each, "SELECT current_setting('statement_timeout')") == statement
            with each.autocommit() as connection:
                assert connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one() == lock
        given = limited.engine.raw_connection()
        assert given.driver_connection.get_dsn_parameters()["connect_timeout"] == "10"
        given.close()
    finally:
        limited.close()


def test_connections_show_signs_of_life_as_often_as_the_url_says_or_once_a_minute(database, database_url):
    """Where nothing is said for minutes, as while an index is built, what lies between may forget the connection."""
    for query, idle in (({}, "60"), ({"keepalives_idle": "30"}, "30")):
        with (
            Database(normalise_url(database_url).update_query_dict(query)) as reached,
            reached.engine.connect() as connection,
        ):
            given = connection.connection.driver_connection.get_dsn_parameters()
            assert given["keepalives_idle"] == idle
            assert (given["keepalives_interval"], given["keepalives_count"]) == ("15", "4")
            assert given["tcp_user_timeout"] == "120000"


def test_a_statement_that_a_look_gives_up_is_no_traceback(settings, database, monkeypatch):
    monkeypatch.setattr("bge_pipeline.phases.migration.LOOK", Limits(connect=10, lock=3, statement=1))
    with (
        pytest.raises(DatabaseUnavailable, match=r"a look at .* was given up after 1 s"),
        Migration.looked_at(settings) as looked,
    ):
        execute(looked.database, "SELECT pg_sleep(20)")


@pytest.fixture
def fresh(database, database_url):
    """Connects anew, after `configure`."""
    opened = []

    def connect():
        opened.append(Database(database_url))
        return opened[-1]

    yield connect
    for other in opened:
        other.close()


def test_strings_that_are_not_standard_leave_no_row_without_a_vector(database, settings, fresh):
    configure(database, standard_conforming_strings="off")
    with fresh() as ours:
        fill_and_swap(Migration(ours, settings))
        status = read_status(Migration(ours, settings))
    assert (status.pending, status.without_text, status.embedded) == (0, 0, status.rows)
    assert wrong_vectors(database, ENCODER, "embedding") == []


def test_a_database_with_everything_set_otherwise_is_migrated_back_and_forth(database, settings, fresh):
    execute(database, "UPDATE segments SET text = text || E' \\\\ naïve ключ' WHERE id = 1")
    configure(database, **HOSTILE)
    ours = fresh()
    for name in HOSTILE.keys() - {"jit_above_cost", "client_encoding", "search_path"}:
        (fixed,) = [setting.value for setting in FIXED_SETTINGS if setting.name == name]
        assert scalar(ours, f"SHOW {name}").startswith(fixed)
    fill_and_swap(Migration(ours, settings))
    rollback(Migration(ours, settings))
    swap(Migration(ours, settings))
    retire(Migration(ours, settings), reclaim=True)
    status = read_status(Migration(ours, settings))
    assert (status.phase, status.pending, status.without_text, status.embedded) == ("retired", 0, 0, status.rows)
    assert status.index.valid
    assert wrong_vectors(ours, ENCODER, "embedding") == []


def test_a_first_look_that_takes_longer_than_statements_of_the_role_may_is_taken(database, fresh, monkeypatch):
    configure(database, statement_timeout="'40ms'")
    monkeypatch.setattr(session, "_LOOK", f"SELECT pg_sleep(0.2); {session._LOOK}")
    assert scalar(fresh(), "SHOW statement_timeout") == "0"


def test_a_first_look_that_begins_later_than_sessions_of_the_role_may_be_idle_is_taken(database, fresh, monkeypatch):
    configure(database, idle_session_timeout="'40ms'")
    look = session.Sessions._look

    def look_late(*arguments):
        time.sleep(0.3)
        look(*arguments)

    monkeypatch.setattr(session.Sessions, "_look", look_late)
    assert scalar(fresh(), "SHOW idle_session_timeout") == "0"


def test_every_setting_is_in_force_and_has_a_reason(database):
    for setting in FIXED_SETTINGS:
        held = scalar(database, "SELECT current_setting(:name, true)", name=setting.name)
        assert (held or "").startswith(setting.value) or (held, setting.name) == (None, "transaction_timeout")
        assert setting.reason


def test_functions_and_tables_of_the_user_do_not_stand_in_for_those_that_we_mean(database, settings, fresh):
    execute(database, "CREATE SCHEMA extensions")
    execute(database, "ALTER EXTENSION vector SET SCHEMA extensions")
    execute(database, "CREATE TABLE vector (n int)")  # and with it a type of that name
    execute(database, "CREATE FUNCTION md5(bytea) RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$")
    configure(database, search_path="public, pg_catalog")
    with fresh() as ours:
        fill_and_swap(Migration(ours, settings))
        assert scalar(ours, "SELECT md5('x'::bytea)") == "9dd4e461268c8034f5c8564e155c67a6"
        assert read_status(Migration(ours, settings)).pending == 0


def test_triggers_of_the_application_see_what_the_role_has_set(database, settings, fresh):
    """A trigger that was written for strings with backslashes, and for names that only its own path finds."""
    execute(database, "CREATE SCHEMA application")
    execute(database, "CREATE TABLE application.seen (what text)")
    configure(database, standard_conforming_strings="off", search_path="application, public", IntervalStyle="iso_8601")
    with application(database) as other:
        other.exec_driver_sql(
            "CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN "
            "INSERT INTO seen VALUES ('it\\'s ' || interval '1 day'); RETURN NEW; END $body$"
        )
        other.exec_driver_sql(
            "CREATE TRIGGER notes BEFORE UPDATE ON public.segments FOR EACH ROW EXECUTE FUNCTION note_it()"
        )
        other.commit()
    with fresh() as ours:
        fill(Migration(ours, settings))
        assert read_status(Migration(ours, settings)).pending == 0
    assert {row[0] for row in execute(database, "SELECT what FROM application.seen")} == {"it's P1D"}


def test_settings_are_fixed_beside_options_of_the_user(database, monkeypatch, database_url):
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB")
    with Database(database_url) as by_environment:
        assert scalar(by_environment, "SHOW work_mem") == "5MB"
        with by_environment.engine.connect() as connection:
            assert by_environment.sessions.is_direct(connection)
    separator = "&" if "?" in database_url else "?"
    with Database(f"{database_url}{separator}options=-c%20work_mem%3D6MB") as by_url:
        assert scalar(by_url, "SHOW work_mem") == "6MB"


class TestTimeLimits:
    def test_a_limit_on_transactions_ends_no_statement_of_ours(self, database, fresh):
        if scalar(database, "SHOW server_version_num") < "170000":
            pytest.skip("transaction_timeout came with PostgreSQL 17")
        configure(database, transaction_timeout="'50ms'")
        with fresh() as ours:
            with ours.autocommit() as connection:
                connection.execute(text("SELECT pg_sleep(0.2)"))
            with ours.transaction() as connection:
                connection.execute(text("SELECT pg_sleep(0.2)"))

    def test_a_connection_that_a_limit_ended_is_not_a_server_that_cannot_be_reached(self, database):
        with pytest.raises(DatabaseUnavailable) as refused, database.transaction() as connection:
            sleep_beyond_the_limit(connection)
        assert "ended the connection" in refused.value.message
        assert "cannot reach" not in refused.value.message
        assert "time limit" in refused.value.next_step


def sleep_beyond_the_limit(connection):
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
    time.sleep(0.3)
    connection.execute(text("SELECT 1"))
