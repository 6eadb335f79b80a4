"""Where the demo lives: a folder, a server and a schema of its own, whatever DATABASE_URL and TARGET_* name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bge_pipeline.database.connection import embedded_folder
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import HomeSettings, Settings, load_settings, names_set

SCHEMA = "bge_pipeline_demo"
"""The demo's schema, in whichever database it works."""

_TARGET: dict[str, Any] = {
    "target_schema": SCHEMA,
    "target_table": "segments",
    "target_id_column": "id",
    "target_text_column": "text",
    "target_text": None,
    "target_text_template": None,
    "target_where": None,
    "target_vector_type": "vector",
    "target_embedding_column": "embedding",
}
_NEVER_TAKEN = frozenset({"database_url", *_TARGET})
_OF_THE_USERS = (
    "dagster_database_url", "bge_pipeline_tables", "dagster_url", "reports_url", "slack_token", "slack_channel",
    "eval_queries", "compare_queries", "query_log", "search_language", "legacy_model", "legacy_dimensions", "old_embedding",
    "server_search_effort", "application_role", "begin_next_migration", "forward_after_rollback",
)  # fmt: skip
"""What else describes a table, its application, their server and who is told of them; the demo has the defaults."""
_NOT_TAKEN_FROM_THE_ENVIRONMENT = _NEVER_TAKEN.union(_OF_THE_USERS)


def demo_settings(overrides: Mapping[str, object], *, database_url: str | None = None) -> Settings:
    """The settings that the demo runs with, and that commands reach its table with afterwards.

    What the environment and `.env` say of the user's database, table, application, Dagster records and questions is left
    out; the model and everything else is taken, and the model is the bundled one where nothing names another.

    Args:
        overrides: settings from the command line, without a database and a table.
        database_url: where the demo works; None: on an embedded PostgreSQL of its own.

    Raises:
        ConfigurationError: an override names a database or a table, or a setting is wrong.
    """
    refused = sorted(name.upper() for name in _NEVER_TAKEN & overrides.keys())
    if refused:
        raise ConfigurationError(
            f"--set: the demo works on a table of its own: expected no {', '.join(refused)}",
            state="nothing was changed",
            next_step="bge-pipeline demo --database-url for another database; its schema is always " + SCHEMA,
        )
    defaults = {name: Settings.model_fields[name].default for name in _OF_THE_USERS}
    own: dict[str, Any] = {**defaults, **overrides, **_TARGET}
    own["database_url"] = database_url
    settings = load_settings(**own)
    # Another database's demo keeps its books apart, so that neither takes the other's partitions for its own.
    own["bge_pipeline_home"] = _folder(settings) if database_url is None else settings.home / "demo-elsewhere"
    if settings.embedding_provider == "local" and "embedding_model" not in settings.model_fields_set:
        own["embedding_model"] = "bundled"
    questions = questions_file(own["bge_pipeline_home"])
    if own["eval_queries"] is None and questions.exists():
        own["eval_queries"] = questions
    return load_settings(**own)


def demo_is_there(settings: Settings) -> bool:
    """Whether a demo has been made on an embedded PostgreSQL under the data folder of these ordinary settings."""
    return embedded_folder(settings.model_copy(update={"bge_pipeline_home": _folder(settings)})).exists()


def names_a_table(settings: Settings) -> bool:
    """Whether these settings name a database or a table of the user's."""
    return settings.database_url is not None or not settings.model_fields_set.isdisjoint(_TARGET)


def questions_file(home: Path) -> Path:
    """The demo's judged questions, in the demo's own data folder."""
    return home / "demo-questions.jsonl"


def left_alone() -> list[str]:
    """Variables of the environment and `.env` that the demo does not take."""
    return sorted(name.upper() for name in names_set() & _NOT_TAKEN_FROM_THE_ENVIRONMENT)


def _folder(settings: HomeSettings) -> Path:
    return settings.home / "demo"
