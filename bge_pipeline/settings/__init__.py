"""Every knob of the project, one group a module."""

from bge_pipeline.settings.backfill import BackfillSettings
from bge_pipeline.settings.configuration import (
    Settings,
    load_settings,
    misspelled_names,
    names_set,
    nearest_setting,
    overruled,
    settings_from_env,
    settings_of_file,
    value_set,
)
from bge_pipeline.settings.dagster import DagsterSettings
from bge_pipeline.settings.database import DatabaseSettings
from bge_pipeline.settings.endpoint import EndpointSettings
from bge_pipeline.settings.home import HomeSettings
from bge_pipeline.settings.index import IndexSettings
from bge_pipeline.settings.locks import LockSettings
from bge_pipeline.settings.model import ModelSettings
from bge_pipeline.settings.quality import QualitySettings
from bge_pipeline.settings.search import SearchSettings
from bge_pipeline.settings.swap import SwapSettings
from bge_pipeline.settings.telemetry import TelemetrySettings

__all__ = [
    "BackfillSettings",
    "DagsterSettings",
    "DatabaseSettings",
    "EndpointSettings",
    "HomeSettings",
    "IndexSettings",
    "LockSettings",
    "ModelSettings",
    "QualitySettings",
    "SearchSettings",
    "Settings",
    "SwapSettings",
    "TelemetrySettings",
    "load_settings",
    "misspelled_names",
    "names_set",
    "nearest_setting",
    "overruled",
    "settings_from_env",
    "settings_of_file",
    "value_set",
]
