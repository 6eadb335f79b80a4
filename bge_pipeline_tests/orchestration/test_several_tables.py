"""Several tables in one code location: each with names, runs, sensors and a history of its own, whatever the others do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.definitions import defs
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.orchestration import alarm_sensors
from bge_pipeline.orchestration.alarm_sensors import tell_failures
from bge_pipeline.orchestration.code_location import code_location
from bge_pipeline.orchestration.dagster_home import environment, for_dagsters_commands
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.per_table import PerTable
from bge_pipeline.orchestration.run_history import never_materialized
from bge_pipeline.orchestration.sensors import embed_new_rows, rerun_failed_partitions
from bge_pipeline.orchestration.served import THE_TABLE, ServedTable, served_tables
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import Status, read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import KEYS, Slack, insert_segment
from bge_pipeline_tests.orchestration.test_processes import dagster, dagster_daemon, taken_at, wait_until
from bge_pipeline_tests.support import execute

pytestmark = pytest.mark.pgvector

Serve = Callable[..., list[ServedTable]]


class Location:
    """A code location of these tables, its jobs and sensors run in this process."""

    def __init__(self, instance: dg.DagsterInstance, tables: list[ServedTable]) -> None:
        self._instance = instance
        self.defs = code_location(tables)
        self._failures_cursor: str | None = None
        self.told_failures()

    def run(
        self, table: ServedTable, job: str, *, partitions: tuple[str, str] | None = None, run_config: object = None
    ) -> dg.ExecuteInProcessResult:
        """The result of a table's job, failed or not."""
        names = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
        return self.defs.resolve_job_def(table.called(job)).execute_in_process(
            instance=self._instance,
            tags=dict(zip(names, partitions, strict=True)) if partitions else None,
            run_config=run_config,
            raise_on_error=False,
        )

    def tick(self, table: ServedTable, sensor: PerTable[dg.SensorDefinition]) -> dg.SensorResult | str:
        """What a table's sensor requests, or why it skips."""
        with dg.build_sensor_context(instance=self._instance, definitions=self.defs) as context:
            result = sensor.of(table)(context)
        if isinstance(result, dg.SkipReason):
            return str(result.skip_message)
        assert isinstance(result, dg.SensorResult)
        return result

    def told_failures(self) -> str:
        """What came of the runs that failed since the last time."""
        cursor = self._failures_cursor
        with dg.build_sensor_context(instance=self._instance, definitions=self.defs, cursor=cursor) as context:
            found = tell_failures.evaluate_tick(context)
        self._failures_cursor = found.cursor
        return str(found.skip_message)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Writes an env file for each table and names them in the environment."""

    def write(**tables: dict[str, str]) -> list[ServedTable]:
        files = []
        for name, variables in tables.items():
            files.append(tmp_path / f"{name}.env")
            files[-1].write_text("".join(f"{key}='{value}'\n" for key, value in variables.items()))
        monkeypatch.setenv("BGE_PIPELINE_TABLES", ",".join(map(str, files)))
        return list(served_tables())

    return write


@pytest.fixture
def talks(database: Database) -> dict[str, str]:
    """A table beside `segments`."""
    execute(database, "CREATE TABLE talks (LIKE segments INCLUDING ALL)")
    execute(database, "INSERT INTO talks SELECT * FROM segments")
    return {"TARGET_TABLE": "talks"}


def status_of(table: ServedTable) -> Status:
    with Migration.opened(table.settings()) as migration:
        return read_status(migration)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    return str(failure.description)


def test_everything_of_a_table_bears_its_name_and_nothing_of_the_one_table_does():
    location = code_location([ServedTable("papers", Path("papers.env")), ServedTable("notes", Path("notes.env"))])
    dg.Definitions.validate_loadable(location)
    jobs = {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    sensors = {sensor.name for sensor in defs.sensors or ()}
    assets = {key.path[-1] for key in defs.resolve_asset_graph().get_all_asset_keys()}
    both = ("papers", "notes")

    assert {job.name for job in location.resolve_all_job_defs() if not job.name.startswith("__")} == {
        f"{name}_{job}" for name in both for job in jobs
    }
    shared = {"tell_failures"}
    assert {sensor.name for sensor in location.sensors or ()} == shared | {
        f"{name}_{one}" for name in both for one in sensors - shared
    }
    assert {tuple(key.path) for key in location.resolve_asset_graph().get_all_asset_keys()} == {
        (name, asset) for name in both for asset in assets
    }
    assert set(location.resources or {}) == {
        f"{name}_{one}" for name in both for one in ("settings", "migration", "embeddings")
    }
    assert "embed_pending_job" in jobs
    assert THE_TABLE.partitions.name == "id_ranges"


@pytest.mark.thorough
def test_tables_of_one_and_of_two_databases_know_nothing_of_each_other(
    instance: dg.DagsterInstance, serve: Serve, talks: dict[str, str], new_database_url: Callable[[], str]
):
    papers, notes, letters = tables = serve(
        papers={"TARGET_TABLE": "segments"},
        notes=talks,
        letters={"TARGET_TABLE": "segments", "DATABASE_URL": new_database_url(), "PARTITION_ROWS": "300"},
    )
    assert notes.env_file is not None
    location = Location(instance, tables)
    for table in tables:
        assert location.run(table, "expand_job").success
    assert [len(known_keys(instance, table)) for table in tables] == [3, 3, 1]

    assert location.run(papers, "backfill_job", partitions=(KEYS[0], KEYS[-1])).success
    as_it_was = notes.env_file.read_text()
    notes.env_file.write_text(as_it_was + "EMBEDDING_DIMENSIONS=256\n")
    failed = location.run(notes, "backfill_job", partitions=(KEYS[1], KEYS[1]))
    notes.env_file.write_text(as_it_was)

    assert not failed.success
    assert [status_of(table).embedded for table in tables] == [300, 0, 0]
    assert [len(never_materialized(instance, table)) for table in tables] == [0, 3, 1]
    assert location.tick(papers, rerun_failed_partitions) == "none of 3 partitions has failed"
    rerun = location.tick(notes, rerun_failed_partitions)
    assert isinstance(rerun, dg.SensorResult)
    assert [request.partition_key for request in rerun.run_requests or ()] == [KEYS[1]]
    assert "nothing is pending" in str(location.tick(papers, embed_new_rows))
    assert "launch the backfill of notes/backfilled_embeddings" in str(location.tick(notes, embed_new_rows))
    assert "1 of 1 partitions have not been materialized" in str(location.tick(letters, embed_new_rows))

    assert location.run(papers, "swap_job").success
    with Migration.opened(papers.settings()) as migration:
        insert_segment(migration.database, 1_000)
    grown = location.tick(papers, embed_new_rows)
    assert isinstance(grown, dg.SensorResult)
    assert [request.job_name for request in grown.run_requests or ()] == ["papers_embed_pending_job"]
    assert location.run(papers, "embed_pending_job").success
    assert [status_of(table).phase for table in tables] == ["swapped", "expanded", "expanded"]
    assert status_of(papers).pending == 0
    asked = location.run(
        papers, "rollback_job", run_config={"ops": {"papers_roll_back": {"config": {"confirm": "no"}}}}
    )
    assert "expected 'public.segments'" in failure_of(asked)


def test_a_failed_partition_is_told_by_its_own_tables_limit_whatever_failed_in_another(
    instance: dg.DagsterInstance, serve: Serve, talks: dict[str, str]
):
    pytest.importorskip("dagster_slack", reason="needs the extra `slack`")
    slack = {"SLACK_TOKEN": "xoxb-1", "SLACK_CHANNEL": "#x", "SLACK_API_URL": "http://127.0.0.1:1/api/"}
    tables = serve(
        papers={"TARGET_TABLE": "segments", "MAX_PARTITION_ATTEMPTS": "2", **slack},
        notes=talks | {"MAX_PARTITION_ATTEMPTS": "1", **slack},
    )
    location = Location(instance, tables)
    for table in tables:
        assert location.run(table, "expand_job").success
        assert table.env_file is not None
        table.env_file.write_text(table.env_file.read_text() + "EMBEDDING_DIMENSIONS=256\n")
    for table in reversed(tables):  # the key of both has then failed twice, that of papers once
        assert not location.run(table, "backfill_job", partitions=(KEYS[0], KEYS[0])).success

        told = location.told_failures()

        assert ("1 failed runs of papers are tried again" in told) == (table.name == "papers"), told


def test_a_failure_of_one_table_leaves_the_channel_of_another_open(
    instance: dg.DagsterInstance, serve: Serve, talks: dict[str, str], slack: Slack, monkeypatch: pytest.MonkeyPatch
):
    for variable in ("SLACK_TOKEN", "SLACK_CHANNEL"):
        monkeypatch.delenv(variable)
    papers, notes = tables = serve(
        papers={"SLACK_TOKEN": "xoxb-1", "SLACK_CHANNEL": "#papers"},
        notes=talks | {"SLACK_TOKEN": "xoxb-2", "SLACK_CHANNEL": "#notes"},
    )
    location = Location(instance, tables)
    for table in (papers, notes, papers):
        assert not location.run(table, "swap_job").success
        location.told_failures()

    assert [message["channel"] for message in slack.messages] == ["#papers", "#notes"]
    assert slack.messages[1]["text"].startswith("notes_swap_job failed in run")
    monkeypatch.setattr(alarm_sensors, "_QUIET_SECONDS", 0.0)
    assert location.told_failures() == "told of 1 failed runs of papers"


def test_errors_name_the_file_by_which_the_table_is_reached(instance: dg.DagsterInstance, serve: Serve):
    (papers,) = serve(papers={"TARGET_TABLE": "segments"})
    location = Location(instance, [papers])
    confirmed = {"ops": {"papers_retire_old_column": {"config": {"confirm": "public.segments"}}}}

    said = failure_of(location.run(papers, "retire_job", run_config=confirmed))

    assert f"Next: bge-pipeline --env-file {papers.env_file} migrate" in said
    assert papers.worded("resources.settings.config.x") == "resources.papers_settings.config.x"


def test_one_column_under_two_names_is_refused(instance: dg.DagsterInstance, serve: Serve, database: Database):
    with pytest.raises(ConfigurationError, match=r"papers\.env and .*notes\.env both name public\.segments\.embedding"):
        serve(papers={"TARGET_TABLE": "segments"}, notes={"TARGET_TABLE": "segments"})
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    otherwise = url.replace("host=%2F", "host=%2F%2F") if "host=%2F" in url else url.replace("localhost", "127.0.0.1")
    if otherwise == url:
        pytest.skip("this server has one address alone")
    papers, notes = tables = serve(papers={}, notes={"DATABASE_URL": otherwise})
    location = Location(instance, tables)
    assert location.run(papers, "expand_job").success

    assert "both name" in failure_of(location.run(notes, "expand_job"))
    assert len(known_keys(instance, notes)) == 0
    assert location.run(papers, "expand_job").success


def test_a_file_that_is_wrong_or_gone_stops_its_own_table_alone(
    instance: dg.DagsterInstance, serve: Serve, talks: dict[str, str]
):
    papers, notes, letters = tables = serve(
        papers={"TARGET_TABLE": "segments"}, notes=talks | {"OLD_INDEX": "perhaps"}, letters=talks
    )
    assert letters.env_file is not None
    letters.env_file.unlink()
    location = Location(instance, tables)

    assert "legacy: materialize papers/schema_with_384_column" in str(location.tick(papers, embed_new_rows))
    assert "notes.env: OLD_INDEX" in str(location.tick(notes, embed_new_rows))
    assert "letters.env cannot be read: No such file" in str(location.tick(letters, embed_new_rows))


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (".env", "gives its table no name"),
        ("papers.env,2024.env", "'2024', which begins with a digit"),
        ("a/papers.env,b/papers.env", "two tables would be called 'papers'"),
        (" , ", "expected files"),
    ],
)
def test_names_that_are_none(files: str, complaint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BGE_PIPELINE_TABLES", files)
    with pytest.raises(ConfigurationError, match=complaint):
        served_tables()


def test_a_table_is_called_after_its_file_and_may_have_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in (".env.papers", "my notes.env", "letters-2.env"):
        (tmp_path / name).write_text(f"TARGET_TABLE='{name}'\n")
    (tmp_path / "letters-2.env").write_text("ENCODER_POOL=encoder_gpu1\n")
    (tmp_path / ".env").write_text("BGE_PIPELINE_TABLES='.env.papers, my notes.env,letters-2.env'\n")

    assert [table.name for table in served_tables()] == ["papers", "my_notes", "letters_2"]
    assert [table.pool for table in served_tables()] == ["encoder", "encoder", "encoder_gpu1"]
    monkeypatch.setenv("BGE_PIPELINE_WITHOUT_ENV_FILE", "true")
    assert served_tables() == (THE_TABLE,)


@pytest.mark.thorough
def test_dagster_loads_them(serve: Serve, tmp_path: Path):
    serve(papers={"TARGET_TABLE": "segments"}, notes={"TARGET_TABLE": "talks"})
    command = [sys.executable, "-m", "dagster", "job", "list", "-m", "bge_pipeline.definitions"]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path)}
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert "papers_swap_job" in listed.stdout
    assert "notes_swap_job" in listed.stdout


@pytest.mark.slow
def test_a_command_of_dagsters_that_puts_env_over_the_environment_reaches_the_table_that_was_meant(
    make_settings: Callable[..., Settings], instance: dg.DagsterInstance, talks: dict[str, str]
):
    meant = make_settings(
        target_table="talks", dagster_database_url=os.environ["DAGSTER_DATABASE_URL"], bge_pipeline_tables=None
    )
    Path(".env").write_text("TARGET_TABLE=segments\nTARGET_SCHEMA=elsewhere\nBGE_PIPELINE_TABLES=segments.env\n")
    variables = for_dagsters_commands(environment(meant))
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "bge_pipeline.definitions", "-j", "status_job"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = instance.get_run_records()
    (found,) = instance.get_records_for_run(
        record.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ).records
    event = found.event_log_entry.dagster_event
    assert event is not None
    assert "talks" in str(event.asset_check_evaluation_data.metadata["table"].value)


@pytest.fixture
def two_expanded(instance: dg.DagsterInstance, serve: Serve, talks: dict[str, str]) -> tuple[ServedTable, ServedTable]:
    papers, notes = tables = serve(papers={"TARGET_TABLE": "segments"}, notes=talks)
    location = Location(instance, tables)
    for table in tables:
        assert location.run(table, "expand_job").success
    return papers, notes


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(1_200)
def test_one_daemon_backfills_two_tables_side_by_side_with_one_model_at_a_time(
    instance: dg.DagsterInstance, two_expanded: tuple[ServedTable, ServedTable], database: Database
):
    for table in two_expanded:
        queued = dagster("job", "backfill", "-j", table.called("backfill_job"), "--all", "--noprompt")
        assert queued.returncode == 0, queued.stderr
    with dagster_daemon():
        wait_until(lambda: not any(never_materialized(instance, table) for table in two_expanded), 800)
        wait_until(lambda: all(run.is_finished for run in instance.get_runs()))
        for table in ("segments", "talks"):
            execute(database, f"UPDATE {table} SET text = 'another text' WHERE id = 7")
        embedding = [dg.RunsFilter(job_name=table.called("embed_pending_job")) for table in two_expanded]
        wait_until(lambda: all(any(run.is_success for run in instance.get_runs(one)) for one in embedding), 300)

    assert [status_of(table).pending for table in two_expanded] == [0, 0]
    backfills = [record for record in instance.get_run_records() if "backfill_job" in record.dagster_run.job_name]
    assert all(record.dagster_run.is_success for record in backfills), json.dumps(
        [(record.dagster_run.job_name, record.dagster_run.status.value) for record in backfills]
    )
    assert len(backfills) == 2 * len(KEYS)
    held = sorted((taken_at(instance, record), record.end_time) for record in backfills)
    assert not [(first, second) for first, second in pairwise(held) if second[0] < first[1]], held
