"""All settings together: read from the environment and `.env`, validated, immutable.

The variables are flat. Inside, each group has a module of its own, and a function says by its annotation which group it takes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.old_spellings import OLD_NAMES, translate
from bge_pipeline.postgres_url import parse_url, shown
from bge_pipeline.settings.backfill import BackfillSettings
from bge_pipeline.settings.dagster import DagsterSettings
from bge_pipeline.settings.database import DatabaseSettings
from bge_pipeline.settings.group import Group
from bge_pipeline.settings.index import IndexSettings
from bge_pipeline.settings.locks import LockSettings
from bge_pipeline.settings.model import ModelSettings
from bge_pipeline.settings.quality import QualitySettings
from bge_pipeline.settings.search import SearchSettings
from bge_pipeline.settings.swap import SwapSettings
from bge_pipeline.settings.telemetry import TelemetrySettings


class Settings(
    DatabaseSettings,
    LockSettings,
    ModelSettings,
    SearchSettings,
    BackfillSettings,
    IndexSettings,
    SwapSettings,
    QualitySettings,
    DagsterSettings,
    TelemetrySettings,
    BaseSettings,
):
    """The whole configuration. The environment variable of a field is its name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Settings:
        texts = ("target_text", "target_text_template", "target_text_column")
        given = [name.upper() for name in texts if name in self.model_fields_set and getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"expected one of TARGET_TEXT_COLUMN, TARGET_TEXT and TARGET_TEXT_TEMPLATE, got {', '.join(given)}"
            )
        columns = [*self.id_columns, self.target_text_column, self.target_embedding_column]
        if self.text_expression is None and len(set(columns)) < len(columns):
            raise ValueError(
                "expected different columns in TARGET_ID_COLUMN, TARGET_TEXT_COLUMN and TARGET_EMBEDDING_COLUMN, "
                f"got {', '.join(columns)}"
            )
        if self.target_where is not None and "drop" in (self.old_index, self.old_embedding):
            raise ValueError(
                "TARGET_WHERE: expected OLD_INDEX=keep and OLD_EMBEDDING=keep, since the other rows are searched with both"
            )
        if self.index_element == "vector" and self.target_vector_type == "halfvec":
            raise ValueError("INDEX_ELEMENT: expected auto or halfvec with TARGET_VECTOR_TYPE=halfvec, got vector")
        if self.index_element == "vector" and self.embedding_dimensions > 2_000:
            raise ValueError(
                f"EMBEDDING_DIMENSIONS: pgvector indexes at most 2,000 dimensions as vector, got {self.embedding_dimensions}; "
                "set INDEX_ELEMENT=halfvec for up to 4,000"
            )
        if self.embedding_dimensions > 4_000:
            raise ValueError(
                f"EMBEDDING_DIMENSIONS: pgvector indexes at most 4,000 dimensions, got {self.embedding_dimensions}"
            )
        if self.embedding_max_cost is not None and not self.embedding_price_per_million:
            raise ValueError(
                f"EMBEDDING_MAX_COST ({self.embedding_max_cost:g}): expected a price above 0 in EMBEDDING_PRICE_PER_MILLION"
            )
        if (self.slack_token is None) != (self.slack_channel is None):
            raise ValueError("SLACK_TOKEN and SLACK_CHANNEL: expected both or neither")
        if self.return_top_k > self.rerank_top_k:
            raise ValueError(f"RETURN_TOP_K ({self.return_top_k}): expected at most RERANK_TOP_K ({self.rerank_top_k})")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, `.env`; last, what old spellings in the latter two stand for."""
        sources = (init_settings, env_settings, dotenv_settings)
        variables: dict[str, str | None] = {}
        for source in (dotenv_settings, env_settings):
            if isinstance(source, EnvSettingsSource):
                variables |= source.env_vars
        taken = {name for source in sources for name in source()}
        return (*sources, InitSettingsSource(settings_cls, translate(variables, taken)))


GroupOfSettings = TypeVar("GroupOfSettings", bound=Group)

_NEARLY = 0.9
"""Share of a name's letters that a misspelling has in common with it."""

_SECRET_FIELDS = frozenset(
    "dagster_database_url dagster_url database_url embedding_api_key embedding_api_url query_expansion_key query_expansion_url "
    "reports_url slack_api_url slack_token".split()
)
"""What was given in their place is not repeated: it may be a password."""


WITHOUT_ENV_FILE = "BGE_PIPELINE_WITHOUT_ENV_FILE"
"""Set for a process whose environment holds all settings, as they were when the process that started it read them."""


AS_STARTED = "BGE_PIPELINE_AS_STARTED"
"""Those settings once more, as one JSON object: Dagster's commands put `.env` over the environment of all that they start, and so
over what options and the demo have chosen."""


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`, `overrides` winning; without `.env` where WITHOUT_ENV_FILE is set.

    Raises:
        ConfigurationError: names each variable at fault, what it held and what it may hold.
    """
    if WITHOUT_ENV_FILE in os.environ:
        overrides = {"_env_file": None} | _under_env_file() | overrides
    try:
        with _readable(Path(".env")):
            return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(
            _explain(error), next_step="correct the variable in the environment or in .env"
        ) from None


@contextmanager
def _readable(env_file: Path | None) -> Iterator[None]:
    """Refuse an env file of somebody else's, or in another encoding, such as the UTF-16 of PowerShell's `>`, without repeating
    what is in it.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{env_file} cannot be read: {error.strerror or error}",
            state="nothing was read or changed",
            next_step="give this user the right to read it, or run the command in another folder",
        ) from error
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{env_file}: expected a file in UTF-8",
            state="nothing was read or changed",
            next_step="save it as UTF-8 without a byte order mark",
        ) from None


def _of_env_file(path: Path | None = Path(".env")) -> DotEnvSettingsSource:
    with _readable(path):
        return DotEnvSettingsSource(Settings, env_file=path)


def _under_env_file() -> dict[str, Any]:
    """What the settings that `.env` has put over the environment were before, by AS_STARTED; their defaults where not set."""
    if AS_STARTED not in os.environ:
        return {}
    before: dict[str, str] = json.loads(os.environ[AS_STARTED])
    names = _of_env_file().env_vars.keys() & Settings.model_fields.keys()
    return {name: before.get(name) or Settings.model_fields[name].default for name in names}


def settings_of_file(path: Path) -> dict[str, str]:
    """What an env file says of the settings, by field name: for `load_settings`, where it wins over environment and `.env`.

    Raises:
        ConfigurationError: the file is not there, or cannot be read.
    """
    try:
        path.open(encoding="utf-8").close()
    except OSError as error:
        raise ConfigurationError(
            f"the env file {path} cannot be read: {error.strerror}",
            state="nothing was changed",
            next_step=f"make it, with TARGET_TABLE and what else is the table's own: bge-pipeline --env-file {path} init",
        ) from error
    variables = dict(_of_env_file(path).env_vars)
    found = {name: value for name, value in variables.items() if value and name in Settings.model_fields}
    return found | translate(variables, found.keys())


def value_set(name: str) -> str | None:
    """What the environment or `.env` sets a field to, valid or not; None where neither does."""
    if AS_STARTED in os.environ:
        return json.loads(os.environ[AS_STARTED]).get(name) or None
    sources: list[EnvSettingsSource] = [EnvSettingsSource(Settings)]
    if WITHOUT_ENV_FILE not in os.environ:
        sources.append(_of_env_file())
    return next((value for source in sources if (value := source.env_vars.get(name))), None)


def read_early(group: type[GroupOfSettings], overrides: Mapping[str, Any] | None = None) -> GroupOfSettings:
    """One group before all others, from the environment and `.env`; its defaults where a value is wrong, which `load_settings`
    says when it reads them all."""
    env_file = None if WITHOUT_ENV_FILE in os.environ else Path(".env")
    sources = (_of_env_file(env_file), EnvSettingsSource(Settings))
    values = {name: value for source in sources for name, value in source().items()} | dict(overrides or {})
    try:
        return group.model_validate({name: value for name, value in values.items() if name in group.model_fields})
    except ValidationError:
        return group()


def misspelled_names(env_file: Path = Path(".env")) -> dict[str, str]:
    """Names in `.env` that are nearly a setting, and the setting. Others there may be another application's."""
    known = [*(name.upper() for name in Settings.model_fields), *OLD_NAMES]
    names = (name.upper() for name in _of_env_file(env_file).env_vars)
    unknown = [name for name in names if name not in known]
    return {name: meant for name in unknown for meant in get_close_matches(name, known, n=1, cutoff=_NEARLY)}


def in_force(settings: Settings) -> dict[str, str]:
    """What was set, by variable, where it is not the default: for people to see, so without secrets."""
    fields = Settings.model_fields
    chosen = {
        name: getattr(settings, name)
        for name in sorted(settings.model_fields_set & fields.keys())
        if getattr(settings, name) != fields[name].default
    }
    return {name.upper(): _shown(value) for name, value in chosen.items()}


def _shown(value: Any) -> str:
    if not isinstance(value, SecretStr):
        return str(value)
    try:
        return shown(parse_url(value.get_secret_value()))
    except ConfigurationError:
        return "***"


def nearest_setting(name: str) -> str | None:
    """The setting whose name is nearly this one, in capitals; None where none is."""
    known = [known.upper() for known in Settings.model_fields]
    return next(iter(get_close_matches(name.upper(), known, n=1, cutoff=0.6)), None)


def names_set() -> frozenset[str]:
    """Names of the settings that the environment or `.env` sets, whether or not their values are valid."""
    return frozenset((*EnvSettingsSource(Settings)(), *_of_env_file()()))


def overruled(values: Mapping[str, str]) -> list[str]:
    """The variables that the environment sets to something else than these values, and so wins over an `.env` with them."""
    held = EnvSettingsSource(Settings).env_vars
    return [name for name, value in values.items() if held.get(name.lower()) not in (None, "", value)]


@lru_cache(maxsize=1)
def settings_from_env() -> Settings:
    """The process-wide settings, read once."""
    return load_settings()


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0]) if problem["loc"] else None
        message = problem["msg"].removeprefix("Value error, ")
        if field is None:
            lines.append(message)
            continue
        held = "" if field in _SECRET_FIELDS else f" (held {problem['input']!r})"
        description = Settings.model_fields[field].description if field in Settings.model_fields else None
        lines.append(f"{field.upper()}: {message}{held}" + (f". It is: {description}" if description else ""))
    return "\n".join(lines)
