"""`alembic upgrade head` and back, on a real table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline_tests.endpoint_server import serving
from bge_pipeline_tests.partitions import divide
from bge_pipeline_tests.roads import ROOT, alembic_config, environment, schema, vectors

pytestmark = pytest.mark.pgvector


@pytest.fixture
def configured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    return settings


def _version(database: Database) -> str | None:
    with database.autocommit() as connection:
        return connection.execute(text("SELECT version_num FROM bge_pipeline_alembic_version")).scalar_one_or_none()


def test_each_revision_takes_the_table_one_phase_further(configured: Settings, database: Database) -> None:
    phases = []
    for revision in ("004", "005", "006", "007"):
        command.upgrade(alembic_config(), revision)
        phases.append(read_status(Migration(database, configured)).phase)

    assert phases == ["legacy", "expanded", "backfilled", "swapped"]
    assert _version(database) == "007"
    assert read_status(Migration(database, configured)).dimensions == 384


def test_a_partitioned_table_goes_all_the_way_and_back(configured: Settings, database: Database) -> None:
    divide(database, "time")
    before, old_vectors = schema(database), vectors(database)
    command.upgrade(alembic_config(), "head")
    status = read_status(Migration(database, configured))
    assert (status.phase, status.embedded, status.dimensions) == ("swapped", 300, 384)
    assert status.index is not None
    assert (status.index.name, status.index.valid) == ("old_name", True)

    command.downgrade(alembic_config(), "004")
    assert (schema(database), vectors(database)) == (before, old_vectors)


def test_a_text_of_several_columns_goes_all_the_way_and_is_refused_a_script(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_TEXT", "coalesce(speaker_label, '') || ' 100%: ' || text")
    with pytest.raises(CommandError, match="TARGET_TEXT"):
        command.upgrade(alembic_config(), "004:005", sql=True)
    command.upgrade(alembic_config(), "head")
    status = read_status(Migration(database, load_settings()))
    assert (status.phase, status.embedded, status.warnings) == ("swapped", status.rows, ())


def test_a_budget_ends_the_backfill_and_its_revision_is_applied_only_when_all_is_done(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        for name, value in (server.environment() | {"EMBEDDING_MAX_TOKENS": "2000"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CommandError, match="EMBEDDING_MAX_TOKENS=2000 is spent"):
            command.upgrade(alembic_config(), "006")
        assert (_version(database), read_status(Migration(database, configured)).phase) == ("005", "expanded")

        monkeypatch.delenv("EMBEDDING_MAX_TOKENS")
        command.upgrade(alembic_config(), "006")
        assert (_version(database), read_status(Migration(database, configured)).phase) == ("006", "backfilled")
        assert len(server.texts) == 300


def test_down_to_the_baseline_leaves_the_table_as_it_was(configured: Settings, database: Database) -> None:
    before, old_vectors = schema(database), vectors(database)
    command.upgrade(alembic_config(), "head")
    assert vectors(database) != old_vectors

    command.downgrade(alembic_config(), "004")

    assert schema(database) == before
    assert vectors(database) == old_vectors


def test_up_down_and_up_again_ends_where_the_first_time_ended(configured: Settings, database: Database) -> None:
    command.upgrade(alembic_config(), "head")
    first = schema(database), vectors(database)
    command.downgrade(alembic_config(), "004")
    command.upgrade(alembic_config(), "head")

    assert (schema(database), vectors(database)) == first


def test_going_back_one_revision_keeps_the_new_vectors(configured: Settings, database: Database) -> None:
    command.upgrade(alembic_config(), "head")
    command.downgrade(alembic_config(), "006")

    status = read_status(Migration(database, configured))
    assert (status.phase, status.dimensions, status.embedded) == ("backfilled", 1536, status.rows)


def test_what_another_road_undid_is_pointed_out_and_done_again_after_a_stamp_by_whoever_says_so(
    configured: Settings, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.upgrade(alembic_config(), "head")
    assert "alembic stamp 004" not in caplog.text
    moment = rollback(Migration(database, configured)).rolled_back

    command.upgrade(alembic_config(), "head")
    assert f"was rolled back at {moment}" in caplog.text
    assert f"`alembic stamp 004` and FORWARD_AFTER_ROLLBACK={moment} alembic upgrade head" in caplog.text

    command.stamp(alembic_config(), "004")
    before = schema(database)
    with pytest.raises(CommandError, match="rolled back"):
        command.upgrade(alembic_config(), "head")
    assert schema(database) == before

    monkeypatch.setenv("FORWARD_AFTER_ROLLBACK", moment)
    command.upgrade(alembic_config(), "head")
    assert read_status(Migration(database, configured)).phase == "swapped"


@pytest.mark.parametrize("discards", [False, True], ids=["rolled back", "and discarded"])
def test_what_another_road_undid_is_left_so_on_the_way_down(
    configured: Settings, database: Database, discards: bool
) -> None:
    before, old_vectors = schema(database), vectors(database)
    command.upgrade(alembic_config(), "head")
    rollback(Migration(database, configured))
    if discards:
        collapse(Migration(database, configured))

    command.downgrade(alembic_config(), "004")

    assert (schema(database), vectors(database)) == (before, old_vectors)
    assert _version(database) == "004"


def test_there_is_no_way_down_from_a_table_whose_old_vectors_are_gone(configured: Settings, database: Database) -> None:
    command.upgrade(alembic_config(), "head")
    retire(Migration(database, configured))
    before = schema(database)
    with pytest.raises(CommandError, match="there is no old column to go back to"):
        command.downgrade(alembic_config(), "004")
    assert (schema(database), _version(database)) == (before, "007")


def test_a_part_of_a_table_goes_all_the_way_and_back(
    configured: Settings, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_WHERE", "id % 3 = 1")
    before, old_vectors = schema(database), vectors(database)
    command.upgrade(alembic_config(), "head")
    status = read_status(Migration(database, load_settings()))
    assert (status.phase, status.embedded, status.rows) == ("backfilled", 100, 100)
    assert "stamp 004" not in caplog.text

    with monkeypatch.context() as another:
        another.setenv("EMBEDDING_DIMENSIONS", "256")
        command.upgrade(alembic_config(), "head")
    assert "stamp 004" in caplog.text

    command.downgrade(alembic_config(), "004")
    assert (schema(database), vectors(database)) == (before, old_vectors)


@pytest.mark.parametrize("model", ["bundled", "./nowhere"], ids=["another model", "a model that is not there"])
def test_another_model_of_the_same_dimensions_is_pointed_out(
    configured: Settings,
    database: Database,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    command.upgrade(alembic_config(), "head")
    assert "stamp 004" not in caplog.text
    monkeypatch.setenv("EMBEDDING_MODEL", model)
    command.upgrade(alembic_config(), "head")
    assert f"holds vectors of {HashingEncoder(384).space}, and the settings name {model}" in caplog.text
    assert "`alembic stamp 004` and `alembic upgrade head`" in caplog.text


def test_the_same_model_under_another_name_is_not_another_one(
    configured: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    command.upgrade(alembic_config(), "head")
    comment = 'SELECT replace(col_description(\'segments\'::regclass, attnum), \'"model": "hashing"\', \'"model": "my/copy"\') '
    with database.transaction() as connection:
        found = connection.exec_driver_sql(
            comment + "FROM pg_attribute WHERE attrelid = 'segments'::regclass AND attname = 'embedding'"
        ).scalar_one()
        assert "my/copy" in found
        connection.exec_driver_sql(f"COMMENT ON COLUMN segments.embedding IS '{found}'")
    command.upgrade(alembic_config(), "head")
    assert "stamp 004" not in caplog.text


def test_the_deployment_after_a_downgrade_does_not_go_forward_by_itself(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.upgrade(alembic_config(), "head")
    command.downgrade(alembic_config(), "006")
    before = schema(database), vectors(database)

    for _ in range(2):
        with pytest.raises(CommandError, match="FORWARD_AFTER_ROLLBACK"):
            command.upgrade(alembic_config(), "head")
        assert (schema(database), vectors(database)) == before
        assert _version(database) == "006"

    monkeypatch.setenv("FORWARD_AFTER_ROLLBACK", str(read_status(Migration(database, configured)).rolled_back))
    command.upgrade(alembic_config(), "head")
    assert read_status(Migration(database, configured)).phase == "swapped"


def test_the_next_migration_begins_for_whoever_names_its_model(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.upgrade(alembic_config(), "head")
    retire(Migration(database, configured))
    command.stamp(alembic_config(), "004")
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    before = schema(database), vectors(database)

    with pytest.raises(CommandError, match="BEGIN_NEXT_MIGRATION=hashing"):
        command.upgrade(alembic_config(), "head")
    assert (schema(database), vectors(database)) == before
    assert _version(database) == "004"

    with monkeypatch.context() as consent:
        consent.setenv("BEGIN_NEXT_MIGRATION", "hashing")
        command.upgrade(alembic_config(), "005")
    command.upgrade(alembic_config(), "head")
    assert read_status(Migration(database, configured)).dimensions == 256


@pytest.mark.parametrize("revision", ["005", "006", "007"])
def test_a_revision_killed_before_it_was_recorded_can_be_repeated(
    configured: Settings, database: Database, revision: str
) -> None:
    command.upgrade(alembic_config(), revision)
    after = schema(database)
    command.stamp(alembic_config(), f"00{int(revision) - 1}")

    command.upgrade(alembic_config(), revision)

    assert schema(database) == after


@pytest.mark.parametrize("one_of", [10, 2], ids=["a few", "half of them, as days later"])
def test_rows_that_arrive_between_backfill_and_swap_are_embedded_before_the_swap(
    configured: Settings, database: Database, one_of: int
) -> None:
    command.upgrade(alembic_config(), "006")
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE segments SET text = text || ' again' WHERE id % :one_of = 0"), {"one_of": one_of}
        )
    assert read_status(Migration(database, configured)).pending > 0

    command.upgrade(alembic_config(), "007")

    status = read_status(Migration(database, configured))
    assert (status.phase, status.pending) == ("swapped", 0)


@pytest.mark.parametrize("way_back", ["007:006", "007:004", "005:004"])
def test_a_script_of_the_way_back_is_refused_and_takes_nothing_back(
    configured: Settings, database: Database, way_back: str
) -> None:
    command.upgrade(alembic_config(), way_back.partition(":")[0])
    before, kept = schema(database), vectors(database)
    with pytest.raises(CommandError, match="the way back has no script"):
        command.downgrade(alembic_config(), way_back, sql=True)
    assert (schema(database), vectors(database)) == (before, kept)


def test_wrong_settings_are_one_clear_error(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "many")
    with pytest.raises(CommandError, match="EMBEDDING_DIMENSIONS"):
        command.upgrade(alembic_config(), "head")


def test_a_data_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {ROOT / 'migrations'}\n")
    variables = environment(settings, BGE_PIPELINE_HOME=str(tmp_path / "file"), PYTHONPATH=str(ROOT))
    del variables["DATABASE_URL"]
    arguments = [sys.executable, "-m", "alembic", "current"]
    done = subprocess.run(
        arguments, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "the embedded PostgreSQL" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_printed_script_adds_the_column_as_the_revision_does(
    configured: Settings, database: Database, capsys: pytest.CaptureFixture[str], make_settings: Callable[..., Settings]
) -> None:
    command.upgrade(alembic_config(), "004:005", sql=True)
    script = capsys.readouterr().out
    with database.autocommit() as connection:
        for statement in _statements(script):
            if "bge_pipeline_alembic_version" not in statement:
                connection.exec_driver_sql(statement.replace("%", "%%"))
    by_hand = schema(database)

    keep_index = make_settings(old_index="keep")
    expand(Migration(database, keep_index), HashingEncoder(384).space)

    assert schema(database) == by_hand


def test_the_printed_script_of_the_swap_runs(
    configured: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    command.upgrade(alembic_config(), "006")
    with database.transaction() as connection:
        connection.execute(text("GRANT SELECT (embedding) ON segments TO PUBLIC"))
    command.upgrade(alembic_config(), "006:007", sql=True)
    script = capsys.readouterr().out
    assert "CREATE INDEX CONCURRENTLY" in script
    with database.autocommit() as connection:
        for statement in _statements(script):
            connection.exec_driver_sql(statement.replace("%", "%%"))

    status = read_status(Migration(database, configured))
    assert (status.phase, status.dimensions, status.pending) == ("swapped", 384, 0)
    with database.autocommit() as connection:
        granted = text("SELECT has_column_privilege('pg_monitor', 'segments', 'embedding', 'SELECT')")
        assert connection.execute(granted).scalar_one()


def test_a_missing_table_is_one_clear_error(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_TABLE", "segmints")
    with pytest.raises(CommandError, match=r'the target table "public"."segmints" does not exist'):
        command.upgrade(alembic_config(), "head")
    assert _version(database) is None


def test_a_server_that_goes_away_is_one_clear_error_and_the_same_command_goes_on(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own connection ends too, which Alembic holds while a phase works on others."""
    with monkeypatch.context() as patched:
        patched.setattr("bge_pipeline.phases.expand.require_version", lambda *_: end_every_other_session(database))
        with pytest.raises(CommandError, match=r"ended the connection(.|\n)*run the same command again"):
            command.upgrade(alembic_config(), "head")
    assert _version(database) == "004"

    command.upgrade(alembic_config(), "head")
    assert read_status(Migration(database, configured)).phase == "swapped"


def test_a_connection_of_alembics_that_ends_while_a_phase_is_at_work_is_one_clear_error_too(
    configured: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("bge_pipeline.phases.expand.record", lambda *_: end_idle_sessions(database))
        with pytest.raises(CommandError, match=r"Alembic's own connection ended(.|\n)*the phase is done"):
            command.upgrade(alembic_config(), "005")
    assert read_status(Migration(database, configured)).phase == "expanded"
    assert _version(database) == "004"

    command.upgrade(alembic_config(), "005")
    assert _version(database) == "005"


def end_idle_sessions(database: Database) -> None:
    """As a firewall ends connections that say nothing; the operator's own has a name."""
    with database.autocommit() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'bge-pipeline' AND pid <> pg_backend_pid()"
            )
        )


def end_every_other_session(database: Database) -> None:
    statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    with database.autocommit() as connection:
        connection.execute(text(statement + "pg_backend_pid()"))


def test_the_applications_own_alembic_history_is_left_alone(configured: Settings, database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num text)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('003_application')"))

    command.upgrade(alembic_config(), "head")

    with database.autocommit() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [
            "003_application"
        ]


def _statements(script: str) -> list[str]:
    """Statements of a script whose only semicolons inside a statement are those of the quoted function body."""
    statements, current, quoted = [], "", False
    for line in script.splitlines():
        if line.startswith("--") and not quoted:
            continue
        current += line + "\n"
        quoted ^= line.count("'") % 2 == 1
        if line.endswith(";") and not quoted:
            statements.append(current.strip().rstrip(";"))
            current = ""
    return [statement for statement in statements if statement]
