"""The command itself: its global options, the settings that they make, and how errors end it."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import click
import typer
import typer.core
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.cli.log_output import log_to_stderr
from bge_pipeline.cli.wording import demo_is_meant, mean_table, worded
from bge_pipeline.console import stderr
from bge_pipeline.database.connection import embedded_folder
from bge_pipeline.demo.home import demo_is_there, demo_settings, names_a_table
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError, ConfigurationError, Stopped
from bge_pipeline.phase_line import working
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.postgres_url import has_password, parse_url
from bge_pipeline.settings import (
    Settings,
    TelemetrySettings,
    load_settings,
    misspelled_names,
    nearest_setting,
    settings_of_file,
)
from bge_pipeline.settings.configuration import read_early

EPILOG = (
    "Configuration comes from the environment and .env (see .env.example). Exit codes: 0 done, 1 failed or answered no, 2 wrong "
    "usage or configuration, or nobody to ask and no --yes, 3 refused because a check did not hold, 4 database or model "
    "unavailable, 5 table locked, 6 another operator at work on the table, 7 budget spent, 130 interrupted, 143 ended by "
    "SIGTERM, after the batch in hand."
)

_KEYS = frozenset({"embedding_api_key", "query_expansion_key", "slack_token"})

_ANYWHERE = ("--set", "--env-file")
_MAKES_ENV_FILE = ("init", "discover")
_URLS = frozenset({"database_url", "dagster_database_url"})

INTERRUPTED = 130
"""What typer turns Ctrl-C into."""


@dataclass
class Invocation:
    """One call of the command.

    Attributes:
        overrides: settings of `--env-file` and `--set`, and those that options of a command stand for, by name.
        env_file: what `--env-file` names, and else `.env`; where `init` and `discover` write.
        env_file_wins: whether it does over the environment, as one that is named.
    """

    overrides: dict[str, str] = field(default_factory=dict)
    env_file: Path = Path(".env")
    env_file_wins: bool = False

    def assign(self, assignment: str) -> None:
        """Take one NAME=VALUE of `--set`.

        Raises:
            ConfigurationError: it is none, or names no setting.
        """
        name, separator, value = assignment.partition("=")
        if not separator or name.lower() not in Settings.model_fields:
            meant = nearest_setting(name)
            got = f", got {name!r}" if name.isidentifier() else ""  # what else stands there may be a password
            raise ConfigurationError(
                f"--set: expected NAME=VALUE with the name of a setting{got}",
                next_step=f"did you mean {meant}?" if separator and meant else None,
            )
        if name.lower() in _KEYS:
            raise ConfigurationError(
                f"--set: {name.upper()} on a command line is seen by everybody who lists the processes of this machine",
                state="nothing was changed",
                next_step=f"set {name.upper()} in the environment or in .env",
            )
        if name.lower() in _URLS:
            warn_of_password(value)
        self.overrides[name.lower()] = value

    def read(self, env_file: Path, *, may_be_made: bool) -> None:
        """Take the settings of `--env-file`.

        Raises:
            ConfigurationError: the file cannot be read, and the command is none that makes it.
        """
        self.env_file, self.env_file_wins = env_file, True
        if env_file.exists() or not may_be_made:
            self.overrides |= settings_of_file(env_file)

    def wait_for_others(self, wait: bool) -> None:
        """What `--wait` stands for."""
        if wait:
            self.overrides["operator_wait_seconds"] = "inf"


def warn_of_password(url: str) -> None:
    """Say so where a URL of the command line holds a password; one that is none is refused where it is used."""
    try:
        is_seen = has_password(parse_url(url))
    except ConfigurationError:
        return
    if is_seen:
        _note(
            "a password on a command line is seen by everybody who lists the processes of this machine; in DATABASE_URL of the "
            "environment or of .env, in PGPASSWORD or in ~/.pgpass it is not"
        )


def invocation() -> Invocation:
    """The call that is under way."""
    context = click.get_current_context(silent=True)
    found: Invocation = context.ensure_object(Invocation) if context is not None else Invocation()
    return found


class _Commands(typer.core.TyperGroup):
    """The commands; `--set NAME=VALUE` and `--env-file FILE` may stand behind them too, where people put them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, those two first."""
        end = args.index("--") if "--" in args else len(args)
        first: list[str] = []
        others: list[str] = []
        words = iter(args[:end])
        for word in words:
            if word in _ANYWHERE:
                first += [word, *([value] if (value := next(words, None)) is not None else [])]
            elif word.startswith(tuple(f"{option}=" for option in _ANYWHERE)):
                first.append(word)
            else:
                others.append(word)
        return super().parse_args(ctx, [*first, *others, *args[end:]])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant, or an error that suggests one once: newer versions of click do as typer does."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if hasattr(error, "possibilities"):
                error.possibilities = None
            raise


app = typer.Typer(
    name="bge-pipeline",
    cls=_Commands,
    help="Change the embedding model behind a live pgvector table: plan, backfill, verify, swap, roll back.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another operator of the table to end, in place of giving up.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
RetryQuarantined = Annotated[bool, typer.Option(help="Try the quarantined rows again.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bge-pipeline {version('bge-pipeline')}")
        raise typer.Exit


def _settings_that_begin_with(incomplete: str) -> list[str]:
    names = (f"{name.upper()}=" for name in Settings.model_fields)
    return [name for name in names if name.startswith(incomplete.upper())]


@app.callback()
def _options(
    context: typer.Context,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override a setting, e.g. INDEX_METHOD=hnsw.",
            autocompletion=_settings_that_begin_with,
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file", metavar="FILE", help="The table of this file, which wins over the environment and .env."
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Work on the demo's table, whatever DATABASE_URL and TARGET_* name.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens in detail.")] = False,
    show_version: Annotated[  # noqa: ARG001 - it has ended by then
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
) -> None:
    call = invocation()
    if env_file is not None:
        if demo:
            raise ConfigurationError("--demo and --env-file name two tables", next_step="leave one of them out")
        call.read(env_file, may_be_made=context.invoked_subcommand in _MAKES_ENV_FILE)
    for assignment in set_ or []:
        call.assign(assignment)
    mean_table(demo=demo, elsewhere="database_url" in call.overrides, env_file=env_file)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    log_to_stderr(read_early(TelemetrySettings, call.overrides).log_format, level)
    for file in dict.fromkeys((Path(".env"), call.env_file)):
        for name, meant in misspelled_names(file).items():
            logging.getLogger("bge_pipeline").warning(
                "%s: %s is no setting and has no effect; %s may be meant", file, name, meant
            )


def settings_of_command() -> Settings:
    """Settings with `--set` on top; those of the demo with `--demo`, and where its table is all that there is."""
    overrides = invocation().overrides
    if demo_is_meant():
        _note("working on the demo's table")
        others = {name: value for name, value in overrides.items() if name != "database_url"}
        return demo_settings(others, database_url=overrides.get("database_url"))
    settings = load_settings(**overrides)
    if not names_a_table(settings) and not embedded_folder(settings).exists() and demo_is_there(settings):
        _note("neither DATABASE_URL nor TARGET_* is set: working on the demo's table")
        return demo_settings(overrides)
    return settings


@contextmanager
def opened(*, for_looks: bool = False) -> Iterator[Migration]:
    """The migration of the configured table, its connections closed at the end; `for_looks`: it waits for no lock for long."""
    settings = settings_of_command()
    if settings.database_url is None and not embedded_folder(settings).exists():
        if demo_is_meant():
            raise ConfigurationError(f"there is no demo in {settings.home}", next_step="bge-pipeline demo makes it")
        raise ConfigurationError(
            f"DATABASE_URL is not set, and there is no embedded PostgreSQL in {settings.home}",
            state="nothing was made or changed",
            next_step="set DATABASE_URL (the environment or .env), or bge-pipeline demo",
        )
    with (Migration.looked_at if for_looks else Migration.opened)(settings) as migration:
        yield migration


@contextmanager
def model_of(migration: Migration) -> Iterator[EmbeddingsService]:
    """The model of the settings, loaded while a terminal says so, and shut down at the end."""
    with ExitStack() as stack:
        with working("loading the model"):
            service = stack.enter_context(open_service(migration))
        yield service


def writable_folder(folder: Path) -> Path:
    """The folder, made where it is missing: what is measured for minutes must have a place to go to.

    Raises:
        ConfigurationError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: expected a folder that can be written to: {error.strerror or error}",
            state="nothing was measured",
            next_step="name another",
        ) from error
    return folder


def main() -> None:
    """Run the command; an error of this project is one message and an exit code, not a traceback."""
    try:
        app()
    except Stopped as stopped:
        stderr.print(worded(str(stopped)), markup=False, highlight=False)
        sys.exit(stopped.exit_code)
    except BgePipelineError as error:
        stderr.print(f"error: {worded(str(error))}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except SQLAlchemyError as error:
        stderr.print(f"error: {worded(_database_message(error))}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            stderr.print(worded("interrupted; every committed batch is kept. Next: bge-pipeline migrate resumes"))
        raise


def _database_message(error: SQLAlchemyError) -> str:
    reason = str(getattr(error, "orig", None) or error).strip()
    return f"PostgreSQL refused a statement: {reason}\nNext: bge-pipeline status shows where the migration stands"


def _note(line: str) -> None:
    stderr.print(line, style="dim", highlight=False, markup=False)
