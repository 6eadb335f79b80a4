"""Commands before a migration: discover the vector columns there are, and init, which asks what is left and ends with a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from bge_pipeline.cli import printing
from bge_pipeline.cli.consent import has_terminal
from bge_pipeline.cli.env_file import write_env
from bge_pipeline.cli.invocation import Json, Yes, app, invocation, opened, warn_of_password
from bge_pipeline.cli.migrating import plan_command
from bge_pipeline.cli.wording import worded
from bge_pipeline.console import inert, stderr
from bge_pipeline.errors import ConfigurationError, TargetTableError
from bge_pipeline.phases.discover import Discovered, discover
from bge_pipeline.settings import DatabaseSettings, Settings, load_settings, overruled, settings_of_file

_OF_TEXT = ("TARGET_TEXT_COLUMN", "TARGET_TEXT", "TARGET_TEXT_TEMPLATE")
_OF_ONE_TABLE = ("TARGET_ID_COLUMN", *_OF_TEXT, "TARGET_WHERE")
_EXPECTED_URL = "postgresql://user:password@host:5432/database"
Table = Annotated[
    str | None,
    typer.Option("--table", metavar="NAME", help="The column to choose: table, schema.table or schema.table.column."),
]


@app.command("discover", short_help="List the vector columns there are.")
def discover_command(
    table: Table = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the TARGET_* lines of --table into .env, or --env-file.")
    ] = False,
    json: Json = False,
    yes: Yes = False,
) -> None:
    """List every vector column of the database: rows, dimensions, index, framework, model. Changes nothing in it."""
    with opened() as migration:
        found, before = discover(migration.database), migration.settings
    if table is None and not write:
        printing.print_json({"columns": [one.as_metadata() for one in found]}) if json else printing.print_discovered(
            found
        )
        return
    chosen = _chosen(found, table)
    if write:
        _write(chosen.settings(), before, yes=yes)
    printing.print_json(chosen) if json else printing.print_settings(chosen.settings())


@app.command("init", short_help="Ask for table and model, write .env.")
def init_command(
    database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The database; DATABASE_URL of environment or .env by default.")
    ] = None,
    table: Table = None,
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its key, where it cannot be told, as TARGET_ID_COLUMN.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(metavar="NAME", help="Its text, where it cannot be told.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The new model, as EMBEDDING_MODEL.")] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Of the new model's vectors.")] = None,
    json: Json = False,
    yes: Yes = False,
) -> None:
    """Ask for database, table and model, write them into .env, and say what the migration would do, as `plan` does.

    Without a terminal the options have to say what cannot be told. Begins no migration.
    """
    overrides = invocation().overrides
    if database_url is not None:
        warn_of_password(database_url)
    url = database_url or overrides.get("database_url") or _configured_url()
    url = url or _asked("DATABASE_URL", "--database-url", f"PostgreSQL URL of the database ({_EXPECTED_URL})")
    overrides["database_url"] = url
    with opened() as migration:
        found, before = discover(migration.database), migration.settings
    chosen = _chosen(found, table)
    target = chosen.settings()
    for name, option, given in (
        ("TARGET_ID_COLUMN", "--id-column", id_column),
        ("TARGET_TEXT_COLUMN", "--text-column", text_column),
    ):
        if given is not None:
            target[name] = given
            if name == "TARGET_TEXT_COLUMN":
                target.pop("TARGET_TEXT", None)
        elif name not in target and not (name == "TARGET_TEXT_COLUMN" and "TARGET_TEXT" in target):
            target[name] = _asked(name, option, f"Of {', '.join(chosen.found.columns)}, the column of {name}")
    fields = Settings.model_fields
    usual = str(fields["embedding_model"].default)
    model = model or (typer.prompt("New model", default=usual, err=True) if has_terminal() and not yes else usual)
    if dimensions is None:
        dimensions = int(fields["embedding_dimensions"].default)
        if model != usual:
            dimensions = int(_asked("EMBEDDING_DIMENSIONS", "--dimensions", f"Dimensions of {model}"))
    values = {"DATABASE_URL": url, **target, "EMBEDDING_MODEL": model, "EMBEDDING_DIMENSIONS": str(dimensions)}
    without_effect = _write(values, before, yes=yes)
    stderr.print(f"written into {invocation().env_file}", style="dim", highlight=False)
    overrides.update({name.lower(): value for name, value in values.items()})
    plan_command(json=json)
    if without_effect:
        stderr.print(
            f"Next: unset {' '.join(without_effect)}, then bge-pipeline migrate", style="yellow", highlight=False
        )
    else:
        stderr.print(worded("Next: bge-pipeline migrate"), style="dim", highlight=False)


def _write(values: Mapping[str, str], before: DatabaseSettings, *, yes: bool) -> list[str]:
    """Write into the env file; the variables without effect there, as the environment sets them to something else.

    Raises:
        ConfigurationError: the settings would be none, with what else is in the file and the environment.
    """
    call = invocation()
    without = _superseded(values, before)
    write_env(values, call.env_file, without=without, check=lambda draft: _check(draft, values), yes=yes)
    for name in without:
        call.overrides.pop(name.lower(), None)
    found = [] if call.env_file_wins else overruled(values)
    for name in found:
        stderr.print(
            f"warning: {name} of the environment wins over {call.env_file}: unset it", style="yellow", highlight=False
        )
    return found


def _superseded(values: Mapping[str, str], before: DatabaseSettings) -> set[str]:
    """Variables that would say another text than `values`, or something of the table that was named before."""
    is_another = (values["TARGET_SCHEMA"], values["TARGET_TABLE"]) != (before.target_schema, before.target_table)
    names = _OF_ONE_TABLE if is_another else _OF_TEXT if not values.keys().isdisjoint(_OF_TEXT) else ()
    return set(names) - values.keys()


def _check(draft: Path, values: Mapping[str, str]) -> None:
    """Load the settings as they would be with that file in the place of the env file."""
    call = invocation()
    read: dict[str, Any] = {name.lower(): value for name, value in values.items()}
    if call.env_file_wins:
        read = dict(settings_of_file(draft))
    if call.env_file.resolve() == Path(".env").resolve():
        read["_env_file"] = draft
    try:
        load_settings(**read)
    except ConfigurationError as error:
        raise ConfigurationError(error.message, state="nothing was written", next_step=error.next_step) from error


def _configured_url() -> str | None:
    url = load_settings().database_url
    return url.get_secret_value() if url is not None else None


def _chosen(found: Sequence[Discovered], table: str | None) -> Discovered:
    """The column that is meant: by name, the only one, or the one that a person chooses."""
    if not found:
        raise TargetTableError(
            "the database has no column of pgvector's types that this role may see",
            state="nothing was written",
            next_step="see that DATABASE_URL names the application's database",
        )
    those = [one for one in found if table is None or _is_called(one, table)]
    if len(those) == 1:
        return those[0]
    if not those or not has_terminal():
        raise ConfigurationError(
            f"--table: {'no column is called' if not those else 'several columns can be meant by'} {table or 'nothing'}; there "
            f"are {', '.join(one.name for one in found)}",
            state="nothing was written",
            next_step="the same command with --table and one of these names",
        )
    printing.print_discovered(those, console=stderr)
    number: int = typer.prompt(f"Which one (1 to {len(those)})", type=click.IntRange(1, len(those)), err=True)
    return those[number - 1]


def _is_called(one: Discovered, name: str) -> bool:
    found = one.found
    return name in (one.name, f"{found.schema}.{found.table}", found.table, f"{found.table}.{found.column}")


def _asked(name: str, option: str, question: str) -> str:
    if not has_terminal():
        raise ConfigurationError(
            f"{name} cannot be told, and there is nobody to ask",
            state="nothing was written",
            next_step=f"the same command with {option}",
        )
    answer: str = typer.prompt(inert(question), err=True)
    return answer
