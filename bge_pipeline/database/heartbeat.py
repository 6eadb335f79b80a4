"""Heartbeats: which processes fill the table now, and which execute a Dagster run, on whatever machine. Each keeps an entry of
the journal fresh.

What cannot be written (a role without UPDATE on the journal, a database that is away) is left: a heartbeat never stops the
work that it tells of.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.journal import RUN, WORKER, journal_is_readable
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.process import in_words, this_process

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A worker of which nothing was heard for so long is not counted on; one that was only slow is counted again."""
GONE_SECONDS = 180.0
"""And after so long its work is given to another, which does no harm should it come back: rows are written once."""

_END_SECONDS = 10.0
"""For which the end of the work waits for a heartbeat that is under way."""

_RENEW = (
    "UPDATE {journal} SET at = clock_timestamp(), facts = CAST(:facts AS jsonb) WHERE number = :number AND act = :act"
)
_BEGIN = "INSERT INTO {journal} (act, facts) VALUES (:act, CAST(:facts AS jsonb)) RETURNING number"
# NULL where there is no journal.
_MAY_RENEW = "SELECT has_table_privilege(to_regclass(:journal), 'UPDATE')"
_READ_RUNS = """
SELECT facts->>'run_id' AS run_id, min(extract(epoch FROM clock_timestamp() - at)::float) AS silent FROM {journal}
WHERE act = :act AND facts->>'run_id' = ANY (CAST(:runs AS text[])) AND NOT coalesce((facts->>'ended')::boolean, false)
GROUP BY 1
"""
_READ = """
SELECT facts, extract(epoch FROM clock_timestamp() - at)::float AS silent FROM {journal}
WHERE act = :act AND at > now() - interval '1 day' AND NOT coalesce((facts->>'ended')::boolean, false)
ORDER BY number
"""


@dataclass(frozen=True)
class Worker:
    """A process that fills the table.

    Attributes:
        process: host, number and start, as `this_process` gives them.
        id_range: of the rows that it fills; `all` for the table.
        model: whose vectors it makes.
        rows: written so far.
        rows_per_second: since it began.
        silent_seconds: since its last heartbeat, by the server's clock.
        still_seconds: since it last wrote a row, or began, as of that heartbeat.
        held: what holds it back, in words; None where nothing does.
        run_id: of the Dagster run that it executes; None where it executes none, or an earlier version wrote the entry.
    """

    process: str
    id_range: str
    model: str
    rows: int
    rows_per_second: float
    silent_seconds: float
    still_seconds: float = 0.0
    held: str | None = None
    run_id: str | None = None

    @property
    def is_silent(self) -> bool:
        """Whether it is not to be counted on: killed, cut off, or its machine asleep."""
        return self.silent_seconds > SILENT_SECONDS

    @property
    def is_gone(self) -> bool:
        """Whether it is taken for dead."""
        return self.silent_seconds > GONE_SECONDS

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"is_silent": self.is_silent}

    def __str__(self) -> str:
        silent = f", silent for {self.silent_seconds:,.0f} s" if self.is_silent else ""
        held = f", held back: {self.held}" if self.held else ""
        return (
            f"{in_words(self.process)}: ids {self.id_range}, {self.rows:,} rows, {self.rows_per_second:,.0f} rows/s"
            f"{silent}{held}"
        )


class Done(Protocol):
    """What a process has done so far: rows written, those of them that stayed in their page, and tokens read."""

    written: int
    in_page: int
    tokens: int


_Kept = TypeVar("_Kept", bound="_Entry")


class _Entry(ABC):
    """An entry of the journal that is kept fresh for as long as the block runs, by a thread of its own.

    Args:
        database: where the journal is.
        target: the table.
        act: under which it stands in the journal.
    """

    def __init__(self, database: Database, target: TargetTable, act: str) -> None:
        self._database = database
        self._target = target
        self._act = act
        self._number: int | None = None
        self._is_told = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name=f"heartbeat of a {act}", daemon=True)

    def __enter__(self: _Kept) -> _Kept:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(_END_SECONDS)
        if not self._thread.is_alive():  # or else the database does not answer, and would not now
            self._beat(ended=True)

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What is told now."""

    def _go_on(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self, *, ended: bool = False) -> None:
        if not self._is_told:
            return
        facts = self._facts() | {"ended": ended}
        try:
            with self._database.transaction() as connection:
                self._write(connection, {"act": self._act, "facts": json.dumps(facts)})
        except (BgePipelineError, SQLAlchemyError) as error:
            logger.debug("no heartbeat could be written: %s", error)

    def _write(self, connection: Connection, values: dict[str, Any]) -> None:
        # A journal that a crash emptied, or that was made anew, gets a new entry.
        if self._number is None:
            # An entry that cannot be renewed would soon look like one of a dead process.
            may_renew = connection.execute(text(_MAY_RENEW), {"journal": self._target.journal}).scalar_one()
            if may_renew is None:
                return
            if not may_renew:
                self._is_told = False
                logger.info(
                    "this process is not seen by status and by other machines: GRANT UPDATE ON %s to its role lets it tell",
                    self._target.journal,
                )
                return
        else:
            renewed = connection.execute(self._target.sql(_RENEW), values | {"number": self._number})
            if renewed.rowcount:
                return
        self._number = connection.execute(self._target.sql(_BEGIN), values).scalar_one()


class Heartbeat(_Entry):
    """Tells of this process while it fills the table, for as long as its block runs.

    Args:
        database: where the journal is.
        target: the table that is filled.
        id_range: in words.
        model: name of the model.
        done: grows while the process works.
        run_id: of the Dagster run that the process executes.

    Attributes:
        held: gives what holds the process back, in words.
        workers: how many processes fill the table now, this one included, as of the last heartbeat.
    """

    def __init__(
        self,
        database: Database,
        target: TargetTable,
        id_range: str,
        model: str,
        done: Done,
        *,
        run_id: str | None = None,
    ) -> None:
        super().__init__(database, target, WORKER)
        self._self = {"process": this_process(), "id_range": id_range, "model": model, "run_id": run_id}
        self._done = done
        self._began = self._moved = time.monotonic()
        self._rows = done.written
        self.held: Callable[[], str | None] = lambda: None
        self.workers = 1

    def _facts(self) -> dict[str, Any]:
        now, rows = time.monotonic(), self._done.written
        if rows != self._rows:
            self._rows, self._moved = rows, now
        seconds = now - self._began
        return self._self | {
            "rows": rows,
            "in_page": self._done.in_page,
            "tokens": self._done.tokens,
            "rows_per_second": rows / seconds if seconds else 0.0,
            "still_seconds": now - self._moved,
            "held": self.held(),
        }

    def _write(self, connection: Connection, values: dict[str, Any]) -> None:
        super()._write(connection, values)
        self.workers = max(1, sum(not worker.is_silent for worker in read_workers(connection, self._target)))


class RunHeartbeat(_Entry):
    """Tells that this process executes a Dagster run, whatever the run does, for as long as its block runs.

    Args:
        database: where the journal is; there is none before expand, and then nothing is told.
        target: the table.
        run_id: of the run.
    """

    def __init__(self, database: Database, target: TargetTable, run_id: str) -> None:
        super().__init__(database, target, RUN)
        self._self = {"process": this_process(), "run_id": run_id}

    def __enter__(self) -> RunHeartbeat:
        self._thread.start()  # a run does not wait for it
        return self

    def _go_on(self) -> None:
        self._beat()
        super()._go_on()

    def _facts(self) -> dict[str, Any]:
        return self._self


def seconds_since_heard(connection: Connection, target: TargetTable, run_ids: Sequence[str]) -> dict[str, float]:
    """Since the last heartbeat of each of these runs that told of itself and did not say that it had ended."""
    if not run_ids or not journal_is_readable(connection, target):
        return {}
    rows = connection.execute(target.sql(_READ_RUNS), {"act": RUN, "runs": list(run_ids)})
    return {row.run_id: row.silent for row in rows}


def read_workers(connection: Connection, target: TargetTable) -> list[Worker]:
    """Who fills the table now, or did when last heard of within a day and never said that it had ended."""
    if not journal_is_readable(connection, target):
        return []
    return [
        Worker(
            row.facts["process"],
            row.facts["id_range"],
            row.facts["model"],
            int(row.facts["rows"]),
            float(row.facts["rows_per_second"]),
            float(row.silent),
            float(row.facts.get("still_seconds", 0.0)),
            row.facts.get("held"),
            row.facts.get("run_id"),
        )
        for row in connection.execute(target.sql(_READ), {"act": WORKER})
    ]
