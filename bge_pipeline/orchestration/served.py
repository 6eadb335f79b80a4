"""The tables that the code location serves: where their settings are, and what all that is theirs is called in Dagster."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from bge_pipeline.console import commands_with
from bge_pipeline.database.connection import embedded_folder, normalise_url
from bge_pipeline.errors import BgePipelineError, ConfigurationError
from bge_pipeline.orchestration.names import GROUP, POOL
from bge_pipeline.settings import Settings, load_settings, settings_of_file, value_set

_NO_NAME = re.compile(r"\W+", re.ASCII)
_PORT = 5432
"""PostgreSQL's, where a URL names none."""


@dataclass(frozen=True)
class ServedTable:
    """A table of the code location.

    Attributes:
        name: stands in front of the names of its assets, jobs, sensors, partitions and resources; empty for the one table
            of the environment.
        env_file: its settings, which win over those of the environment; None: the environment's and `.env`'s alone.
        pool: of the runs that load its model.
        partitions_per_run: that a Dagster backfill puts into one run.
    """

    name: str = ""
    env_file: Path | None = None
    pool: str = POOL
    partitions_per_run: int = 1

    def called(self, name: str) -> str:
        """What its job, op, sensor, resource or set of partitions of that name is called."""
        return f"{self.name}_{name}" if self.name else name

    def key(self, asset: str) -> dg.AssetKey:
        """The key of its asset of that name."""
        return dg.AssetKey([self.name, asset] if self.name else [asset])

    @property
    def group(self) -> str:
        """The group of its assets."""
        return self.name or GROUP

    @cached_property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """Its id ranges."""
        return dg.DynamicPartitionsDefinition(name=self.called("id_ranges"))

    def kept_as(self, name: str) -> str:
        """The key under which something of its own is kept in Dagster's instance."""
        return "/".join(["bge_pipeline", *([self.name] if self.name else []), name])

    def settings(self, **overrides: Any) -> Settings:
        """Its settings as they are now, `overrides` winning.

        Raises:
            ConfigurationError: names the file, and each variable at fault.
        """
        if self.env_file is None:
            return load_settings(**overrides)
        try:
            return load_settings(**(settings_of_file(self.env_file) | overrides))
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{self.env_file}: {error.message}", state=error.state, next_step=error.next_step
            ) from error

    def worded(self, text: str) -> str:
        """The text with commands and the launchpad's settings as they reach this table."""
        if self.env_file is None:
            return text
        launchpad = text.replace("resources.settings.", f"resources.{self.called('settings')}.")
        return commands_with(f"--env-file {shlex.quote(str(self.env_file))}", launchpad)


THE_TABLE = ServedTable()
"""The table of the environment and `.env`, where they name no others."""


def served_tables() -> tuple[ServedTable, ...]:
    """The tables of BGE_PIPELINE_TABLES, or the one of the environment.

    Raises:
        ConfigurationError: two of them are one, or a file's name gives a table none.
    """
    named = value_set("bge_pipeline_tables")
    if named is None:
        return (_defined(THE_TABLE),)
    files = [Path(file.strip()) for file in named.split(",") if file.strip()]
    tables = tuple(_defined(ServedTable(_name(file), file)) for file in files)
    if not tables:
        raise _refused(f"expected files, got {named!r}", "BGE_PIPELINE_TABLES=papers.env,notes.env")
    names = [table.name for table in tables]
    for table in tables:
        if names.count(table.name) > 1:
            raise _refused(f"two tables would be called {table.name!r} after their files", "rename one of the files")
    _require_different(tables)
    return tables


def _name(file: Path) -> str:
    """`papers` of `papers.env`, and of `.env.papers`."""
    parts = [part for part in file.name.split(".") if part not in ("", "env")]
    name = _NO_NAME.sub("_", "_".join(parts)).strip("_")
    if not name:
        raise _refused(f"{file} gives its table no name", "call it after the table, as in papers.env")
    if not name.isidentifier():
        raise _refused(f"{file} gives its table the name {name!r}, which begins with a digit", f"call it t_{file.name}")
    return name


def _defined(table: ServedTable) -> ServedTable:
    try:
        settings = table.settings()
        return replace(table, pool=settings.encoder_pool, partitions_per_run=settings.partitions_per_run)
    except BgePipelineError:
        return table  # its runs and sensors say what is wrong, and those of the others go on


def _require_different(tables: Sequence[ServedTable]) -> None:
    """Refuse two files that name one column, as far as their settings tell."""
    seen: dict[tuple[str, ...], ServedTable] = {}
    for table in tables:
        try:
            settings = table.settings()
            where = column_of(settings)
        except BgePipelineError:
            continue
        other = seen.setdefault(where, table)
        if other is not table:
            raise _refused(
                f"{other.env_file} and {table.env_file} both name {settings.target_schema}.{settings.target_table}."
                f"{settings.target_embedding_column} of one database",
                "let one of them name another table, or leave it out",
            )


def column_of(settings: Settings) -> tuple[str, ...]:
    """Database, table and column that the settings name, as they spell them."""
    table = (settings.target_schema, settings.target_table, settings.target_embedding_column)
    if settings.database_url is None:
        return (str(embedded_folder(settings)), *table)
    url = normalise_url(settings.database_url.get_secret_value())
    return (str(url.host or url.query.get("host", "")), str(url.port or _PORT), str(url.database or ""), *table)


def _refused(what: str, next_step: str) -> ConfigurationError:
    return ConfigurationError(
        f"BGE_PIPELINE_TABLES: {what}", state="the code location was not loaded", next_step=next_step
    )
