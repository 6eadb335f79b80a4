"""What the revisions share: a phase run outside Alembic's transaction, and its statements printed for `--sql`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from alembic import op
from alembic.util import CommandError
from sqlalchemy import TextClause

from bge_pipeline.database.connection import Database
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.embedding.space import EmbeddingSpace
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.settings import Settings, load_settings


def run_phase(phase: Callable[[Database, Settings], object]) -> None:
    """Run a phase on connections of its own, with no transaction of Alembic's open meanwhile."""
    with op.get_context().autocommit_block(), explained():
        settings = load_settings()
        with Database.from_settings(settings) as database:
            phase(database, settings)


def print_phase(script: Callable[[TargetTable, Settings, EmbeddingSpace], Iterable[TextClause]]) -> None:
    """Print a phase's statements for `--sql`; statements that build an index stand outside a transaction."""
    with explained():
        settings = load_settings()
        statements = script(TargetTable.from_settings(settings), settings, configured_space(settings))
    for statement in statements:
        if "CONCURRENTLY" in statement.text:
            with op.get_context().autocommit_block():
                op.execute(statement)
        else:
            op.execute(statement)


@contextmanager
def explained() -> Iterator[None]:
    """Let Alembic print an error of this project as a message, not as a traceback."""
    try:
        yield
    except BgePipelineError as error:
        raise CommandError(str(error)) from error
