"""A round: an application at work, a migration that faults meet, started again until it is done, and the truth at the end."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.chaos.application import Application, Row, some_text
from bge_pipeline_tests.chaos.scenario import CHANGES_SCHEMA, PATTERNS, Act, Fault, Scenario
from bge_pipeline_tests.chaos.server import ChaosServer, end_backend
from bge_pipeline_tests.chaos.truth import OLD, OLD_DIMENSIONS, faults_of, vectors_of
from bge_pipeline_tests.chaos.worker import DAGSTER, Worker
from bge_pipeline_tests.support import administer, execute

_MOST_ATTEMPTS = 15
_ATTEMPT_SECONDS = 90


@dataclass
class Round:
    """What a round did and found.

    Attributes:
        wrong: what is not as it must be; nothing in a good round.
        faults: those that came to pass, by kind and place.
        missed: those whose moment never came.
        attempts: processes that were started for the acts.
    """

    scenario: Scenario
    wrong: list[str] = field(default_factory=list)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: int = 0
    attempts: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    rows: int = 0
    writes: int = 0
    reads: int = 0
    cut_off: int = 0
    longest_write_seconds: float = 0.0
    longest_read_seconds: float = 0.0

    @property
    def was_frozen(self) -> bool:
        """Whether an operator was stopped, with whatever locks it held."""
        return any(kind == "freeze" for kind, _ in self.faults)

    def __str__(self) -> str:
        verdict = "well" if not self.wrong else "WRONG: " + "; ".join(self.wrong[:5])
        came = ", ".join(f"{kind} at {place}" for kind, place in self.faults.elements()) or "no fault"
        return (
            f"seed {self.scenario.seed}: {self.scenario}\n  {self.seconds:.0f} s, {self.attempts} processes, "
            f"{came} came, {self.missed} did not; "
            f"{self.writes} writes (longest {self.longest_write_seconds * 1e3:.0f} ms), "
            f"{self.reads} searches (longest {self.longest_read_seconds * 1e3:.0f} ms): {verdict}"
        )


class Chaos:
    """Rounds on one server, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.server = ChaosServer.temporary()
        self.server.prepare()
        self._folder = folder

    def close(self) -> None:
        """Stop the server."""
        self.server.remove()

    def play(self, scenario: Scenario) -> Round:
        """Play a round; its findings are in the result, and what its processes printed is in the folder."""
        return _Play(self.server, scenario, self._folder / str(scenario.seed)).run()


class _Play:
    def __init__(self, server: ChaosServer, scenario: Scenario, folder: Path) -> None:
        self.server, self.scenario, self.folder = server, scenario, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.round = Round(scenario)
        self.name = f"chaos_{scenario.seed}"
        self.chance = random.Random(f"{scenario.seed} play")

    @property
    def url(self) -> URL:
        return self.server.url.set(database=self.name)

    def run(self) -> Round:
        began = time.monotonic()
        for name in (self.name, f"{self.name}_dagster"):
            administer(self.server.url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            administer(self.server.url, f"CREATE DATABASE {name}")
        ledger, old_vectors = self._make_table()
        with Application(self.url, self.scenario.seed, ledger) as application:
            time.sleep(0.2)
            for act in self.scenario.acts:
                self._perform(act)
        self._attempt(("embed", "--json"), None)
        self._judge(application, old_vectors)
        self.round.seconds = time.monotonic() - began
        if not self.round.wrong:
            for name in (self.name, f"{self.name}_dagster"):
                administer(self.server.url, f"DROP DATABASE {name} WITH (FORCE)")
        return self.round

    def _make_table(self) -> tuple[dict[int, Row], dict[int, str]]:
        ledger = {n: Row(some_text(self.chance), f"label {n}") for n in range(1, self.scenario.rows + 1)}
        vectors = vectors_of([row.text or "-" for row in ledger.values()], OLD)
        options = "lists = 3" if self.scenario.method == "ivfflat" else "m = 8"
        with Database(self.url) as database:
            execute(database, "CREATE EXTENSION vector")
            execute(
                database,
                f"CREATE TABLE segments (id bigint PRIMARY KEY, text text, label text, embedding vector({OLD_DIMENSIONS}))",
            )
            with database.transaction() as connection:
                for (key, row), vector in zip(ledger.items(), vectors, strict=True):
                    connection.exec_driver_sql(
                        "INSERT INTO segments VALUES (%s, %s, %s, %s)", (key, row.text, row.label, str(vector.tolist()))
                    )
            execute(
                database,
                f"CREATE INDEX ON segments USING {self.scenario.method} (embedding vector_cosine_ops) WITH ({options})",
            )
            with database.autocommit() as connection:
                connection.exec_driver_sql("VACUUM ANALYZE segments")
            return ledger, dict(execute(database, "SELECT id, embedding::text FROM segments"))

    def _perform(self, act: Act) -> None:
        """Start the act again and again until a process says that it is done."""
        faults = list(act.faults)
        for number in range(_MOST_ATTEMPTS):
            fault = faults.pop(0) if faults else None
            operators = self.scenario.operators if number == 0 or self.chance.random() < 0.5 else 1
            if 0 in self._attempt(self._arguments(act), fault, operators=operators):
                return
        self.round.wrong.append(f"{act.name} was not done after {_MOST_ATTEMPTS} attempts: {self._last_words()}")

    def _arguments(self, act: Act) -> tuple[str, ...]:
        if act.name != "migrate":
            return (act.name, "--yes", "--json")
        if self.scenario.road == "alembic":
            if self._rolled_back() is not None:  # Alembic's books do not know what another road took back
                self._attempt(("alembic", "stamp", "004"), None)
            return ("alembic", "upgrade", "head")
        return DAGSTER if self.scenario.road == "dagster" else ("migrate", "--yes", "--json")

    def _rolled_back(self) -> str | None:
        with Database(self.url) as database:
            return read_status(Migration(database, self._settings())).rolled_back

    def _settings(self):
        return load_settings(
            _env_file=None,
            database_url=self.url.set(drivername="postgresql").render_as_string(hide_password=False),
            bge_pipeline_home=self.folder,
            embedding_model="hashing",
        )

    def _attempt(self, arguments: tuple[str, ...], fault: Fault | None, *, operators: int = 1) -> list[int]:
        """The exit codes of one or two processes that did the same while the fault came over the first."""
        variables = self._variables()
        offset = self.server.log_size()
        workers = []
        for _ in range(operators):
            self.round.attempts += 1
            workers.append(Worker(arguments, variables, self.folder / f"{self.round.attempts:02d}.txt"))
        watcher = threading.Thread(target=self._bring, args=(fault, workers[0], offset)) if fault else None
        if watcher is not None:
            watcher.start()
        codes = [self._end(worker) for worker in workers]
        if watcher is not None:
            watcher.join()
        self.round.codes.update(codes)
        for worker in workers:
            if "Traceback" in (said := worker.said()):
                self.round.wrong.append(f"{worker.output.name} has a traceback: {said.strip().splitlines()[-1]}")
        return codes

    def _end(self, worker: Worker) -> int:
        code = worker.wait(_ATTEMPT_SECONDS)
        if code is None:
            self.round.wrong.append(f"{worker.output.name} does not end")
            os.kill(worker.pid, signal.SIGKILL)
            code = worker.wait(10)
        return code if code is not None else -1

    def _variables(self) -> dict[str, str]:
        dagster = self.server.url.set(database=f"{self.name}_dagster", drivername="postgresql")
        own = {
            "DATABASE_URL": self.url.set(drivername="postgresql").render_as_string(hide_password=False),
            "DAGSTER_DATABASE_URL": dagster.render_as_string(hide_password=False),
            "BGE_PIPELINE_HOME": str(self.folder),
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "EMBEDDING_MODEL": "hashing",
            "QUALITY_GATE": "off",
            "SEARCH_PROBES": "1",
            "SEARCH_EF_SEARCH": "40",
            "BACKFILL_BATCH_ROWS": "40",
            "PARTITION_ROWS": "400",
            "BENCHMARK_TEXTS": "10",
            "OPERATOR_WAIT_SECONDS": "3",
            "MAX_PARTITION_ATTEMPTS": "1",
        }
        if self.round.attempts and (moment := self._rolled_back()) is not None:
            own["FORWARD_AFTER_ROLLBACK"] = moment
        return {name: value for name, value in os.environ.items() if name not in own} | own

    def _bring(self, fault: Fault, worker: Worker, offset: int) -> None:
        """Wait for the fault's moment, and bring it about."""
        pid = self._wait_for(fault, worker, offset)
        if pid is None:
            self.round.missed += 1
            return
        time.sleep(fault.seconds if fault.statement else 0)
        if fault.kind == "kill":
            os.kill(worker.pid, signal.SIGKILL)
        elif fault.kind == "freeze":
            os.kill(worker.pid, signal.SIGSTOP)
            time.sleep(fault.frozen_seconds)
            os.kill(worker.pid, signal.SIGCONT)
        elif fault.kind == "crash":
            self.server.crash()
        elif not end_backend(pid):
            self.round.missed += 1
            return
        self.round.faults[fault.kind, fault.place] += 1

    def _wait_for(self, fault: Fault, worker: Worker, offset: int) -> int | None:
        """The process of the server that runs the statement, or any of ours; None if the worker ended before."""
        began = time.monotonic()
        seen = 0
        changing: set[int] = set()
        last = 0
        pattern = re.compile(PATTERNS[fault.statement]) if fault.statement else None
        for sighting in self.server.sightings(offset):
            if pattern is None and time.monotonic() - began > fault.seconds:
                return last or None if fault.kind == "end backend" else 1
            if sighting is None:
                if worker.process.exitcode is not None:
                    return None
                time.sleep(0.0005)
                continue
            last = sighting.pid
            if re.search(CHANGES_SCHEMA, sighting.line):
                changing.add(sighting.pid)
            if pattern is None or not pattern.search(sighting.line):
                continue
            if fault.statement == "COMMIT" and sighting.pid not in changing:
                continue
            seen += 1
            if seen == fault.occurrence:
                return sighting.pid
        return None

    def _judge(self, application: Application, old_vectors: dict[int, str]) -> None:
        done = self.round
        done.writes, done.reads = application.writes.count, application.reads.count
        done.longest_write_seconds = application.writes.longest_seconds
        done.longest_read_seconds = application.reads.longest_seconds
        done.cut_off = application.writes.cut_off + application.reads.cut_off
        done.rows = len(application.ledger)
        done.wrong += application.writes.errors
        kept = {key: old_vectors[key] for key in application.unchanged}
        retired = self.scenario.acts[-1].name == "retire"
        if done.wrong:
            return  # what is missing after a migration that never ended is no finding of its own
        with Database(self.url, application_name="judge") as database:
            done.wrong += faults_of(database, application.ledger, kept, self.scenario.method, retired=retired)

    def _last_words(self) -> str:
        newest = max(self.folder.glob("*.txt"))
        return f"{newest.name}: {newest.read_text()[-400:]}"


def temporary_folder() -> Path:
    """For what the processes print; kept where a round went wrong."""
    return Path(tempfile.mkdtemp(prefix="bge-pipeline-chaos-"))
