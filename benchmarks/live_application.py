"""The application of `benchmarks.live`: it searches, writes, and notes how long each took."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812

SEARCH_EVERY_SECONDS = 0.02
WRITE_EVERY_SECONDS = 0.05
_NEAREST = "SELECT id FROM documents ORDER BY embedding <=> %s::vector LIMIT 10"
_STORED = (
    "SELECT embedding::text FROM documents TABLESAMPLE SYSTEM (20) WHERE embedding IS NOT NULL "
    "AND vector_dims(embedding) = (SELECT atttypmod FROM pg_attribute WHERE attrelid = 'documents'::regclass "
    "AND attname = 'embedding') LIMIT 50"
)
_WORDS = "index table row vector model search page commit lock snapshot update column trigger vacuum".split()


class Latencies:
    """Moments (seconds since the epoch) and durations (seconds) of one kind of statement."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []

    def add(self, began: float) -> None:
        """Note a statement that began at that reading of the clock and has just ended."""
        self._seen.append((time.time(), time.perf_counter() - began))

    def forget(self) -> None:
        """Begin anew."""
        self._seen = []

    def between(self, first: float, last: float) -> list[float]:
        """Milliseconds of the statements that ended in that span."""
        return [seconds * 1e3 for at, seconds in self._seen if first <= at < last]

    def by_second(self, origin: float) -> list[list[float]]:
        """[second since the origin, p50, p95, longest] in milliseconds, for each second in which a statement ended."""
        found = []
        for second, group in groupby(self._seen, key=lambda seen: int(np.floor(seen[0] - origin))):
            values = np.array([seconds * 1e3 for _, seconds in group])
            found.append([second, *np.percentile(values, [50, 95]).round(2).tolist(), round(float(values.max()), 2)])
        return found

    @staticmethod
    def summary(milliseconds: Sequence[float]) -> dict[str, float]:
        """p50, p95, p99, longest and how many there were."""
        if not milliseconds:
            return {"samples": 0}
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).round(2).tolist()
        return {
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "longest": round(max(milliseconds), 2),
            "samples": len(milliseconds),
        }


class Application:
    """One reader and one writer, each with a connection of its own; `work` are the functions of their threads."""

    def __init__(self, dsn: str, rows: int) -> None:
        self._dsn = dsn
        self._rows = rows
        self.searches, self.writes = Latencies(), Latencies()
        self.failures: dict[str, int] = {}

    @property
    def work(self) -> tuple[Callable[[threading.Event], None], ...]:
        """Each runs until its event is set."""
        return self._read, self._write

    def forget(self) -> None:
        """What it noted so far was for getting warm."""
        self.searches.forget()
        self.writes.forget()

    def _read(self, stop: threading.Event) -> None:
        """Search; after a change of dimensions with vectors of the new ones, as an application that has changed over."""
        cursor = self._connect()
        # A small table flips between its index and reading all of itself, whatever the tool; a large one does not.
        cursor.execute("SET enable_seqscan = off")
        queries = _stored_vectors(cursor)
        while not stop.wait(SEARCH_EVERY_SECONDS):
            began = time.perf_counter()
            try:
                cursor.execute(_NEAREST, (random.choice(queries),))
                cursor.fetchall()
                self.searches.add(began)
            except psycopg2.Error as error:
                self._note("search", error)
                queries = _stored_vectors(cursor) or queries
        cursor.connection.close()

    def _write(self, stop: threading.Event) -> None:
        cursor = self._connect()
        while not stop.wait(WRITE_EVERY_SECONDS):
            statement, values = self._change()
            began = time.perf_counter()
            try:
                cursor.execute(statement, values)
                self.writes.add(began)
            except psycopg2.Error as error:
                self._note("write", error)
        cursor.connection.close()

    def _change(self) -> tuple[str, tuple[object, ...]]:
        """Half touch a row, three in ten edit its text, the rest insert one."""
        kind, row = random.random(), random.randint(1, self._rows)
        if kind < 0.5:
            return "UPDATE documents SET touched = now() WHERE id = %s", (row,)
        if kind < 0.8:
            return "UPDATE documents SET content = content || ' changed' WHERE id = %s", (row,)
        return "INSERT INTO documents (content) VALUES (%s)", (" ".join(random.choices(_WORDS, k=20)),)

    def _connect(self) -> Cursor:
        connection = psycopg2.connect(self._dsn, application_name="application")
        connection.autocommit = True
        return connection.cursor()

    def _note(self, what: str, error: psycopg2.Error) -> None:
        reason = f"{what}: {str(error).splitlines()[0][:80]}"
        self.failures[reason] = self.failures.get(reason, 0) + 1


def _stored_vectors(cursor: Cursor) -> list[str]:
    cursor.execute(_STORED)
    return [row[0] for row in cursor.fetchall()]
