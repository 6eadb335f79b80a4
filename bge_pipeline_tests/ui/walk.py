"""A migration by clicks with all that may come between: for the UI's test, and for the pictures of scripts/screenshots.py."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import expect

from bge_pipeline.database.heartbeat import Worker
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import pause, resume
from bge_pipeline.phases.status import Status, read_status
from bge_pipeline_tests.support import execute, wait_until
from bge_pipeline_tests.ui.dagster_ui import PATIENCE_SECONDS, DagsterUI

STATIONS = (
    "fresh",
    "launch",
    "running",
    "killed",
    "stopped",
    "refused",
    "swapped",
    "report",
    "confirm",
    "rolled-back",
    "retired",
)
"""What there is to see on the way, in order."""

See = Callable[[str], None]
"""Called at each station, when the page shows it."""


class Walk:
    """A person who migrates a table of three or more partitions, on an instance in which nothing has run.

    The table is in phase legacy; each partition takes seconds to fill, so that a run can be met while it is at work.
    """

    def __init__(self, ui: DagsterUI, migration: Migration, see: See = lambda _: None) -> None:
        self._ui = ui
        self._migration = migration
        self._database = migration.database
        self._see = see

    def begin(self) -> None:
        """The graph of a fresh instance, and the first asset."""
        self._ui.open_lineage()
        self._see("fresh")
        self._ui.materialize("schema_with_384_column")

    def backfill(self, partitions: int) -> None:
        """All partitions from the asset's page, one at a time: one run is killed, the next one stopped, and the rest goes on."""
        dialog = self._ui.choose_partitions("backfilled_embeddings", "All")
        self._see("launch")
        self._ui.launch_chosen(dialog)

        with self._held() as first:
            self._ui.open_runs()
            self._see("running")
            os.kill(number_of(first), signal.SIGKILL)

        # It is started again by itself, when it is its turn.
        with self._held(after=first) as second:
            assert second.id_range != first.id_range, "one partition at a time, in order"
            self._ui.open_runs()
            expect(self._ui.page.get_by_text("Failure", exact=True).first).to_be_visible()
            self._see("killed")
            self._ui.open_run_in_progress()
            self._ui.terminate()
        next_step = self._ui.page.get_by_text(re.compile("Next: materialize backfilled_embeddings, partition")).first
        expect(next_step).to_be_visible()
        next_step.scroll_into_view_if_needed()
        self._see("stopped")

        # Whoever stopped it launches it again; all others are done.
        self._wait(lambda status: self._missing_of(second) == status.pending)
        self._ui.launch_backfill("backfilled_embeddings", "Failed and missing")
        self._ui.wait_for_partitions(materialized=partitions)

    def swap(self) -> None:
        """Refused while a view reads the old column, then done."""
        execute(self._database, f"CREATE VIEW newest AS SELECT id, embedding FROM {self._migration.target}")
        log = self._ui.materialize_in_vain("swapped_index")
        expect(log).to_contain_text("depend on column 'embedding' and would keep reading the old vectors: view newest")
        expect(log).to_contain_text("Next: drop them and create them again after the swap")
        self._see("refused")
        execute(self._database, "DROP VIEW newest")
        self._ui.materialize("swapped_index")

    def report(self) -> None:
        """The benchmark, and the graph with everything in it."""
        self._ui.materialize("benchmark_report")
        self._ui.open_lineage()
        self._see("swapped")
        self._ui.open_markdown("benchmark_report", "report")
        self._see("report")

    def roll_back(self) -> None:
        """Confirmed by the table's name; the graph says that search reads the old vectors."""
        self._ui.type_confirmation("rollback_job", self._table)
        self._see("confirm")
        self._ui.launch()
        self._ui.open_lineage()
        expect(self._ui.failed_checks("swapped_index")).to_be_visible()
        self._see("rolled-back")
        told = self._ui.open_check("swapped_index", "migration_status")
        expect(told.get_by_text(re.compile("search reads the old vectors again")).first).to_be_visible()

    def go_forward(self) -> None:
        """Once more to the new vectors, by the consent that the refusal asks for."""
        log = self._ui.materialize_in_vain("swapped_index")
        expect(log).to_contain_text("FORWARD_AFTER_ROLLBACK=")
        moment = self._status().rolled_back
        config = f'resources: {{settings: {{config: {{forward_after_rollback: "{moment}"}}}}}}'
        self._ui.materialize_with("swapped_index", config)
        self._wait(lambda status: status.phase == "swapped")

    def retire(self) -> None:
        """The end, which wants to be confirmed too."""
        self._ui.type_confirmation("retire_job", self._table)
        self._ui.launch()
        self._ui.open_lineage()
        expect(self._ui.failed_checks("swapped_index")).to_be_hidden()
        self._see("retired")

    @property
    def _table(self) -> str:
        target = self._migration.target
        return f"{target.schema}.{target.table}"

    def _status(self) -> Status:
        return read_status(self._migration)

    def _wait(self, condition: Callable[[Status], bool]) -> None:
        wait_until(lambda: condition(self._status()), PATIENCE_SECONDS)

    @contextmanager
    def _held(self, after: Worker | None = None) -> Iterator[Worker]:
        """The process that fills a partition now, paused in the middle of it, so that a slow page does not come too late.

        Another one than `after`, if that is given.
        """
        found: list[Worker] = []

        def has_written() -> bool:
            found[:] = [one for one in self._status().workers if after is None or one.process != after.process]
            return bool(found) and self._missing_of(found[0]) < self._rows_of(found[0])

        wait_until(has_written, PATIENCE_SECONDS)
        pause(self._migration)
        try:
            assert self._missing_of(found[0]) > 0, "it is in the middle"
            yield found[0]
        finally:
            resume(self._migration)

    def _missing_of(self, worker: Worker) -> int:
        return self._count(worker, "embedding_384 IS NULL")

    def _rows_of(self, worker: Worker) -> int:
        return self._count(worker, "true")

    def _count(self, worker: Worker, condition: str) -> int:
        lower, upper = (int(bound) for bound in re.findall(r"\d+", worker.id_range))
        statement = f"SELECT count(*) FROM {self._migration.target} WHERE id >= :lower AND id < :upper AND {condition}"
        ((rows,),) = execute(self._database, statement, lower=lower, upper=upper)
        return int(rows)


def number_of(worker: Worker) -> int:
    """The number of a process of this machine."""
    return int(worker.process.rsplit("/", 2)[1])
