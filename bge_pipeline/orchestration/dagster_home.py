"""The Dagster home: its folder with dagster.yaml, and the environment in which Dagster's processes find it and the database."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from pydantic import SecretStr

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.storage import dagster_database_url
from bge_pipeline.settings import HomeSettings, Settings
from bge_pipeline.settings.configuration import AS_STARTED, WITHOUT_ENV_FILE


def prepare_dagster_home(settings: HomeSettings) -> Path:
    """The folder for DAGSTER_HOME, with this project's dagster.yaml in it; one that a person has edited is left alone."""
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(files("bge_pipeline.orchestration").joinpath("dagster.yaml").read_text())
    return home


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings and this Dagster home. Holds passwords: not for a log."""
    variables = {"DAGSTER_HOME": str(prepare_dagster_home(settings)), "BGE_PIPELINE_HOME": str(settings.home)}
    # A line that is added to `.env` afterwards would else be read where a changed one is not.
    variables[WITHOUT_ENV_FILE] = "true"
    for name in settings.model_fields_set - {"bge_pipeline_home"}:
        value = getattr(settings, name)
        if value is not None:
            variables[name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    # What these settings leave out is read from nowhere else: an empty variable counts as one that is not set.
    others = [name for name in os.environ if name.upper() not in variables]
    return variables | {name: "" for name in others if name.lower() in settings.model_fields_set}


def for_dagsters_commands(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a command of Dagster's, which puts `.env` over them. Holds passwords: not for a log."""
    started = {name.lower(): value for name, value in variables.items() if name.lower() in Settings.model_fields}
    return {**variables, AS_STARTED: json.dumps(started)}


def server_urls(settings: Settings) -> dict[str, str]:
    """Where the target table and Dagster's records are, the embedded server's URLs included. Holds passwords.

    The tables of BGE_PIPELINE_TABLES may all have a DATABASE_URL of their own; the embedded server is not started for them.
    """
    urls = {"DAGSTER_DATABASE_URL": dagster_database_url(settings).render_as_string(hide_password=False)}
    if not settings.bge_pipeline_tables or settings.database_url is not None:
        with Database.from_settings(settings) as database:
            urls["DATABASE_URL"] = database.url.render_as_string(hide_password=False)
    return urls


@contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables are set for the length of the block, and put back as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
