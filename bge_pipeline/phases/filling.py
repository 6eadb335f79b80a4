"""Filling: passes over one column until no row of it waits that can be embedded. No phases, no journal."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from psycopg2.errors import ReadOnlySqlTransaction, UndefinedColumn, UndefinedTable
from sqlalchemy.exc import InternalError, OperationalError, ProgrammingError

from bge_pipeline.database.catalog import Column, TableDescription, describe_table
from bge_pipeline.database.connection import Database, disk_full, is_disk_full
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.partitions import relations_read
from bge_pipeline.database.pending import count_pending
from bge_pipeline.database.read_only import read_only_fault
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.writer import CommitRules, Destination
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import ChangedMeanwhile, DatabaseUnavailable, LoginRefused, PhaseError, ReadOnlyDatabase
from bge_pipeline.phases.pace import Pace
from bge_pipeline.phases.readable import read_when_unlocked, waiting_briefly
from bge_pipeline.phases.row_path import RowPath
from bge_pipeline.phases.row_totals import BackfillTotals
from bge_pipeline.phases.row_writing import first_line
from bge_pipeline.phases.state import with_quarantine_of
from bge_pipeline.settings import BackfillSettings

logger = logging.getLogger(__name__)

_AS_MANY = 0.9
"""Share of the fewest rows that were pending so far; with more of them, a pass got nowhere. Where an application locks most rows
at any moment, each pass gets hold of some, and all of them of all."""

_Names = tuple[str, frozenset[tuple[int, str, str]]]
"""What statements of a pass go by: the column's name, and the tables that it reads."""


def fill_column(
    database: Database,
    settings: BackfillSettings,
    target: TargetTable,
    number: int,
    encoder: Encoder,
    *,
    id_range: IdRange | None = None,
    totals: BackfillTotals | None = None,
    report: Callable[[], None] = lambda: None,
    pace: Pace,
) -> int:
    """Give every pending row of the range its vector in the column of that number; returns how many still wait.

    A column is known by its number: where the columns are exchanged meanwhile, it goes on under the other name.

    Args:
        database: where the target table is.
        settings: BACKFILL_BATCH_ROWS, BACKFILL_MAX_LOCK_MS and BACKFILL_MAX_ATTEMPTS.
        target: names the table.
        number: the column's, in the catalog.
        encoder: of the column's embedding space, which the caller has seen to.
        id_range: `[lower, upper)`; None: the table.
        totals: where rows and times are added up.
        report: called after each commit.
        pace: what the passes ask between two batches.

    Raises:
        PhaseError: the column was dropped, or a trigger of the application fails.
        DiskFull: the server has no space left for more vectors.
        EncodingError: the encoder fails on every text.
        DatabaseUnavailable: the database went away and did not come back.
        ReadOnlyDatabase: it takes no changes any more, as after a failover.
        Stopped: somebody asked for the end while the table could not be read, so that nobody knows how many rows wait.
    """
    totals = totals if totals is not None else BackfillTotals()
    stalled_passes = 0
    fewest = math.inf
    has_progressed = True
    was_cut_short = False
    while True:
        done = totals.written + totals.quarantined
        began: _Names | None = None
        try:
            with waiting_briefly(database) as connection:
                unlocked = partial(read_when_unlocked, database, connection, target, pace.hold)
                table = unlocked(partial(describe_table, connection, target))
                column = column_now(table, number)
                target = unlocked(partial(with_quarantine_of, connection, target, number))
                began = column.name, unlocked(partial(relations_read, connection, target))
                pending = unlocked(partial(count_pending, connection, target, column.name, id_range))
            # What is left is locked, or edited as fast as it is embedded; another pass would find as much.
            # A pass that was ended from outside says nothing of that, unless it wrote nothing either.
            is_counted = not (was_cut_short and has_progressed)
            stalled_passes = stalled_passes + is_counted if pending > _AS_MANY * fewest else 0
            if not pending or pace.is_over or stalled_passes >= settings.backfill_max_attempts:
                return pending
            fewest = min(fewest, pending)
            path = RowPath(
                database,
                Destination(target, column.name, number, table.id_kind, encoder.space.dimensions),
                encoder,
                CommitRules(
                    settings.backfill_max_lock_ms,
                    pace.batch_rows(settings.backfill_batch_rows),
                    settings.skips_triggers,
                ),
                pace,
                max_attempts=settings.backfill_max_attempts,
            )
            if stalled_passes and not has_progressed:
                path.pause(2.0**stalled_passes)
            pace.begin_pass()
            was_cut_short = True
            path.run(id_range, totals, report)
            was_cut_short = False
        except (ChangedMeanwhile, ProgrammingError) as error:
            if isinstance(error, ProgrammingError):
                _require_other_names(database, target, number, began, error, totals)
            logger.info("columns or partitions of %s were exchanged or dropped meanwhile; looking again", target)
        except LoginRefused:
            raise
        except (InternalError, OperationalError, DatabaseUnavailable) as error:
            _give_up(database, settings, error, totals)
        has_progressed = totals.written + totals.quarantined > done


def _give_up(
    database: Database,
    settings: BackfillSettings,
    error: InternalError | OperationalError | DatabaseUnavailable,
    totals: BackfillTotals,
) -> NoReturn:
    state = f"{totals.written} rows are committed, nothing is lost"
    if isinstance(error, InternalError):
        if not isinstance(error.orig, ReadOnlySqlTransaction):
            raise error
        with database.autocommit() as connection:
            fault = read_only_fault(connection)
        reason, remedy = fault or (first_line(error.orig), "see that DATABASE_URL leads to the primary server")
        raise ReadOnlyDatabase(
            f"{reason}: expected a database that takes changes, as it did when the backfill began",
            state=state,
            next_step=f"{remedy.rstrip(';')}, then run the backfill again; it resumes",
        ) from error
    if isinstance(error, OperationalError) and is_disk_full(error):
        raise disk_full(error, state=state) from error
    raise DatabaseUnavailable(
        f"the database did not answer in {settings.backfill_max_attempts} attempts: {first_line(error)}",
        state=state,
        next_step="run the backfill again when the database answers; it resumes",
    ) from error


def _require_other_names(
    database: Database,
    target: TargetTable,
    number: int,
    began: _Names | None,
    error: ProgrammingError,
    totals: BackfillTotals,
) -> None:
    """Take an error for that of a statement which names what has another name by now, or raise it for what it is.

    Raises:
        PhaseError: what our statements name is as it was when the pass began: something that they run lacks something.
    """
    if not isinstance(error.orig, (UndefinedColumn, UndefinedTable)):
        raise error
    with database.autocommit() as connection:
        column = column_now(describe_table(connection, target), number)
        now = column.name, relations_read(connection, target)
    if now != began:
        return
    context = error.orig.diag.context or ""
    functions = [line for line in context.splitlines() if line.startswith("PL/pgSQL function")]
    raise PhaseError(
        f"{target}: a trigger of the application, or something else that runs as rows are read and written, fails: "
        f"{'; '.join((first_line(error.orig), *functions))}",
        state=f"{totals.written} rows are committed, nothing is lost",
        next_step="name it with its schema there, or give the role that fills the column the search_path that it counts on "
        "(ALTER ROLE ... SET search_path), then run the backfill again; it resumes",
    ) from error


def column_now(table: TableDescription, number: int) -> Column:
    """The column of that number, under the name that it has now.

    Raises:
        PhaseError: it was dropped.
    """
    column = table.with_number(number)
    if column is None:
        raise PhaseError(
            f"the column that was being filled in {table.target} was dropped meanwhile",
            state="what was committed to it went with it",
            next_step="bge-pipeline status",
        )
    return column
