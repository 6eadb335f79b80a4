"""The Dagster home: its configuration, where its records go, and what it lets out."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import PoolGranularity
from dagster_postgres import PostgresEventLogStorage

from bge_pipeline.database.connection import normalise_url
from bge_pipeline.errors import DatabaseUnavailable
from bge_pipeline.orchestration.dagster_home import environment, prepare_dagster_home
from bge_pipeline.orchestration.storage import dagster_database_url
from bge_pipeline.settings import Settings, load_settings

DEPLOYED = Path(__file__).parents[2] / "deploy" / "dagster.yaml"


def test_the_deployed_instance_differs_in_its_storage_alone(tmp_path: Path):
    home = prepare_dagster_home(load_settings(bge_pipeline_home=tmp_path))

    packaged, deployed = (yaml.safe_load(path.read_text()) for path in (home / "dagster.yaml", DEPLOYED))

    assert packaged.pop("storage") != deployed.pop("storage")
    assert packaged == deployed


def test_the_instance_for_celery_differs_in_where_runs_go_and_how_long_they_may_wait():
    deployed, celery = (
        yaml.safe_load(path.read_text()) for path in (DEPLOYED, DEPLOYED.parent / "celery/dagster.yaml")
    )

    assert {"run_launcher", "run_coordinator"} == celery.keys() - deployed.keys()
    assert celery["run_monitoring"].pop("start_timeout_seconds") > deployed["run_monitoring"].pop(
        "start_timeout_seconds"
    )
    assert {name: celery[name] for name in deployed} == deployed


def test_an_edited_dagster_yaml_is_left_alone(tmp_path: Path):
    settings = load_settings(bge_pipeline_home=tmp_path)
    edited = prepare_dagster_home(settings) / "dagster.yaml"
    edited.write_text("telemetry: {enabled: false}\n")

    prepare_dagster_home(settings)

    assert edited.read_text() == "telemetry: {enabled: false}\n"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_the_url_names_the_driver_that_dagster_needs(scheme: str):
    settings = load_settings(dagster_database_url=f"{scheme}://user:secret@host/dagster")

    assert dagster_database_url(settings).drivername == "postgresql+psycopg2"


def test_the_environment_carries_what_was_set_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SESSION_PRIORITY")
    settings = load_settings(bge_pipeline_home=tmp_path, database_url="postgresql://u:p@h/d", partition_rows=7)

    assert environment(settings) == {
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "BGE_PIPELINE_WITHOUT_ENV_FILE": "true",
        "BGE_PIPELINE_HOME": str(tmp_path),
        "DATABASE_URL": "postgresql://u:p@h/d",
        "PARTITION_ROWS": "7",
    }


def test_without_any_database_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def not_installed(_folder: Path) -> str:
        raise DatabaseUnavailable("the embedded PostgreSQL is not installed")

    monkeypatch.setattr("bge_pipeline.orchestration.storage.start_embedded_postgres", not_installed)

    with pytest.raises(DatabaseUnavailable, match="set DAGSTER_DATABASE_URL"):
        dagster_database_url(load_settings(bge_pipeline_home=tmp_path))


@pytest.mark.pgvector
def test_the_instance_keeps_its_records_in_postgres_and_lets_one_encoder_run(instance: dg.DagsterInstance):
    assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
    assert instance.global_op_concurrency_default_limit == 1
    assert instance.get_concurrency_config().pool_config.pool_granularity == PoolGranularity.RUN
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 60
    assert not instance.telemetry_enabled


@pytest.mark.pgvector
def test_the_deployed_instance_opens(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert settings.dagster_database_url is not None
    shutil.copy(DEPLOYED, tmp_path / "dagster.yaml")
    url = normalise_url(settings.dagster_database_url.get_secret_value()).render_as_string(hide_password=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_DATABASE_URL", url)

    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs() == []


@pytest.mark.pgvector
def test_no_password_reaches_dagsters_home(settings: Settings):
    assert settings.dagster_database_url is not None
    written = "".join(path.read_text() for path in prepare_dagster_home(settings).rglob("*.yaml"))

    assert settings.dagster_database_url.get_secret_value() not in written
    assert "postgresql" not in written.replace("PostgreSQL", "")
