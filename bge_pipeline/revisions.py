"""The Alembic revisions: where they are, Alembic run on them, and what they share. They stand in `migrations`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from alembic import op
from alembic.config import CommandLine, Config
from alembic.util import CommandError

import bge_pipeline
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.errors import BgePipelineError, ConfigurationError, DatabaseUnavailable
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.sql_for_review import Script
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline.space import EmbeddingSpace

COMMANDS = ("upgrade", "downgrade", "stamp", "current", "history", "heads", "show")
"""Alembic's commands that run or read revisions; the others write new ones."""
_OF_A_DATABASE = ("upgrade", "downgrade", "stamp", "current")


def revisions_folder() -> Path:
    """Alembic's `script_location`: inside the package where it was installed from a wheel, beside it in a clone."""
    package = Path(bge_pipeline.__file__).parent
    folder = package / "migrations"
    return folder if folder.is_dir() else package.parent / "migrations"


def reads_a_database(arguments: Sequence[str]) -> bool:
    """Whether an Alembic command asks or changes a database, and does not only print."""
    return bool(arguments) and arguments[0] in _OF_A_DATABASE and "--sql" not in arguments


def run_alembic(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Run an Alembic command on the revisions, as `alembic` does in a clone.

    Args:
        arguments: as one types them after `alembic`, for example `["upgrade", "005", "--sql"]`.
        variables: set in the environment, from which the revisions read their settings.

    Raises:
        ConfigurationError: no command that runs or reads revisions.
        BgePipelineError: a phase or Alembic failed.
    """
    if not arguments or arguments[0] not in COMMANDS:
        raise ConfigurationError(
            f"bge-pipeline alembic: expected one of {', '.join(COMMANDS)}, got {' '.join(arguments) or 'nothing'}",
            next_step="bge-pipeline alembic upgrade 005, 006 and 007; what follows the command is Alembic's own",
        )
    os.environ |= variables or {}
    ours, alembics = logging.getLogger("bge_pipeline"), logging.getLogger("alembic")
    alembics.handlers, alembics.level, alembics.propagate = ours.handlers, ours.level, ours.propagate
    command_line = CommandLine(prog="bge-pipeline alembic")
    options = command_line.parser.parse_args(arguments)
    options.raiseerr = True
    config = Config(cmd_opts=options)
    config.set_main_option("script_location", str(revisions_folder()).replace("%", "%%"))
    try:
        command_line.run_cmd(config, options)
    except CommandError as error:
        if isinstance(error.__cause__, BgePipelineError):
            raise error.__cause__ from None
        raise BgePipelineError(f"Alembic: {error}", next_step="bge-pipeline status") from error


def run_phase(phase: Callable[[Migration], object]) -> None:
    """Run a phase on connections of its own, with no transaction of Alembic's open meanwhile.

    Raises:
        CommandError: a script was asked for (`--sql`), and the phase looks at the table as it goes.
        CommandError: the phase failed, or Alembic's own connection, which it holds meanwhile, has ended.
    """
    if op.get_context().as_sql:  # Alembic would print its own statements and let the phase work on the table
        raise CommandError("the way back has no script, since it looks at the table as it goes: run it without --sql")
    failure: CommandError | None = None
    try:
        with op.get_context().autocommit_block():
            try:
                with explained(), Migration.opened(load_settings()) as migration:
                    phase(migration)
            except CommandError as error:
                failure = error
                raise
    except psycopg2.Error as error:  # out of the end of Alembic's block, which SQLAlchemy leaves as it comes
        if failure is not None:
            raise failure from failure.__cause__
        with explained():
            raise DatabaseUnavailable(
                f"Alembic's own connection ended while the phase was at work: {str(error).strip()}",
                state="the phase is done, and Alembic's books do not know it",
                next_step="run the same command again: every revision sees for itself what is left to do",
            ) from error


def print_phase(script: Callable[[TargetTable, Settings, EmbeddingSpace], Script]) -> None:
    """Print a phase's statements for `--sql`."""
    with explained():
        settings = load_settings()
        statements = script(TargetTable.from_settings(settings), settings, configured_space(settings))
    if statements.alone:
        with op.get_context().autocommit_block():
            for statement in statements.alone:
                op.execute(statement)
    for statement in statements.together:
        op.execute(statement)


@contextmanager
def explained() -> Iterator[None]:
    """Let Alembic print an error of this project as a message, not as a traceback."""
    try:
        yield
    except BgePipelineError as error:
        raise CommandError(str(error)) from error
