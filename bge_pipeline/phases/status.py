"""Status: the facts about a table and its migration, as one object. Changes nothing, loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.heartbeat import Worker, read_workers
from bge_pipeline.database.journal import last_backfill
from bge_pipeline.database.partition_indexes import serving_indexes
from bge_pipeline.database.pause import PauseEntry, read_pause
from bge_pipeline.database.pending import count_lacking, count_pending, count_rows
from bge_pipeline.database.quarantine import QuarantinedRow, list_quarantined
from bge_pipeline.database.size import table_bytes
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.text_columns import explaining_text
from bge_pipeline.phases.application_vectors import ApplicationVectors
from bge_pipeline.phases.consent import rolled_back
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, Phase, looking_again, read_state, space_of
from bge_pipeline.phases.surroundings import warnings_of


@dataclass(frozen=True)
class IndexStatus:
    """The vector index on the column being reported on."""

    name: str
    method: str
    valid: bool
    bytes: int


@dataclass(frozen=True)
class Status:
    """Where a migration stands.

    Attributes:
        table: schema-qualified, quoted.
        phase: `legacy`, `expanded`, `backfilled`, `swapped` or `retired`.
        rows: all rows of the table.
        column: the column that the counts below are about: the one being filled, or the one that search reads.
        embedded, pending, quarantined, without_text: rows by what is left to do for that column.
        dimensions: of the column that search reads.
        model: name of the model behind the column that search reads, None if nobody recorded it.
        index: vector index on `column`, None if there is none.
        searched_index: that on `searched_column`, which search uses.
        new_model, new_dimensions: of the column being filled, None outside a migration.
        run_by: what ran the model in the last backfill, how that was proved, and what kept it off a faster way.
        previous_column: the old column, kept for the way back.
        rolled_back: when the columns were exchanged back, while nobody has agreed to go forward again.
        searched_column: the column that search reads.
        not_searchable: rows with text that search does not find, having no vector in `searched_column`.
        searched_pending: of these, the rows that this project will give one; None before the first swap, when the
            application fills that column.
        without_previous: rows with text that a rollback would leave without a vector; None without a previous column.
        application_vectors: what the application wrote since the swap, compared with the model; None where the columns
            cannot be taken for each other, and where nobody asked.
        quarantine: the latest rows put aside.
        companion_quarantine: those that the model of the companion column cannot embed.
        paused: who paused the table, when and why; None where runs may write.
        warnings: what makes vectors unreliable or the application's statements fail, with what mends it.
        part: the condition of the rows that all of this is about; None: every row of the table.
        workers: processes that fill the table now, on whatever machine.
        eta_seconds: until nothing is pending, at the rate of those that are heard of; None where none is at work.
        bytes: size of the table with indexes and out-of-line values.
    """

    table: str
    phase: Phase
    rows: int
    embedded: int
    pending: int
    quarantined: int
    without_text: int
    column: str
    dimensions: int | None
    model: str | None
    index: IndexStatus | None
    searched_index: IndexStatus | None
    new_model: str | None
    new_dimensions: int | None
    previous_column: str | None
    rolled_back: str | None
    searched_column: str
    not_searchable: int
    searched_pending: int | None
    without_previous: int | None
    quarantine: tuple[QuarantinedRow, ...]
    companion_quarantine: tuple[QuarantinedRow, ...]
    warnings: tuple[str, ...]
    bytes: int
    workers: tuple[Worker, ...] = ()
    eta_seconds: float | None = None
    paused: PauseEntry | None = None
    run_by: str | None = None
    part: str | None = None
    application_vectors: ApplicationVectors | None = None

    def as_metadata(self) -> dict[str, Any]:
        """Plain values, and the next step."""
        return asdict(self) | {"next_step": self.next_step}

    @property
    def next_step(self) -> str:
        """What to run next."""
        if self.paused is not None:
            return "bge-pipeline resume, after which every run goes on"
        if self.rolled_back is not None:
            return (
                "bge-pipeline migrate (asks, then searches the new vectors again), or bge-pipeline rollback --discard"
            )
        if self.part is not None and self.phase == "backfilled":
            return f"bge-pipeline migrate (builds the index), then search the part in {self.column!r}; nothing is exchanged"
        return {
            "legacy": "bge-pipeline plan, then bge-pipeline migrate",
            "expanded": "bge-pipeline migrate (resumes the backfill)",
            "backfilled": "bge-pipeline migrate (builds the index and swaps)",
            "swapped": "bge-pipeline retire when you trust the new search, or bge-pipeline rollback",
            "retired": "nothing: the migration is complete",
        }[self.phase]


@looking_again
def read_status(migration: Migration) -> Status:
    """The status of the target table; counts every row once."""
    target = migration.target
    with explaining_text(target), migration.database.autocommit() as connection:
        state = read_state(connection, target)
        column = state.new or state.table.embedding
        counts = count_rows(connection, target, column.name)
        current, new = state.current_space, space_of(state.new) if state.new else None
        misses = (
            count_lacking(connection, target, state.table.embedding.name)
            if state.new is not None
            else counts.pending + counts.quarantined
        )
        return Status(
            table=str(target),
            phase="backfilled" if state.phase == "expanded" and not counts.pending else state.phase,
            rows=counts.rows,
            embedded=counts.embedded,
            pending=counts.pending,
            quarantined=counts.quarantined,
            without_text=counts.without_text,
            column=column.name,
            dimensions=state.table.embedding.dimensions,
            model=current.model if current else None,
            index=_index_on(connection, state, column),
            searched_index=_index_on(connection, state, state.table.embedding),
            new_model=new.model if new else None,
            new_dimensions=new.dimensions if new else None,
            previous_column=state.previous.name if state.previous else None,
            rolled_back=rolled_back(state.new),
            searched_column=state.table.embedding.name,
            not_searchable=misses,
            searched_pending=_searched_pending(connection, state, counts.pending),
            without_previous=count_lacking(connection, target, state.previous.name) if state.previous else None,
            quarantine=tuple(list_quarantined(connection, target)),
            companion_quarantine=tuple(list_quarantined(connection, target.companion)) if state.companion else (),
            warnings=warnings_of(connection, state),
            bytes=table_bytes(connection, target),
            workers=(workers := tuple(read_workers(connection, target))),
            eta_seconds=_eta(workers, counts.pending),
            paused=read_pause(connection, target),
            run_by=_run_by(connection, target),
            part=target.condition,
        )


def _eta(workers: Sequence[Worker], pending: int) -> float | None:
    rate = sum(worker.rows_per_second for worker in workers if not worker.is_silent)
    return pending / rate if pending and rate else None


def _run_by(connection: Connection, target: TargetTable) -> str | None:
    """As the last backfill that wrote a row has noted it; earlier versions noted nothing."""
    last = last_backfill(connection, target)
    return last.facts.get("run_by") if last is not None else None


def _index_on(connection: Connection, state: MigrationState, column: Column) -> IndexStatus | None:
    indexes = serving_indexes(connection, state.table, column.number)
    best = max(indexes, key=lambda index: index.valid, default=None)
    return IndexStatus(best.name, best.method, best.valid, best.bytes) if best else None


def _searched_pending(connection: Connection, state: MigrationState, pending: int) -> int | None:
    if state.phase in ("swapped", "retired"):
        return pending
    column = state.companion
    return count_pending(connection, state.table.target.companion, column.name) if column is not None else None
