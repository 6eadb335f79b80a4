"""The application of a chaos run: writers that keep a ledger of what they committed, readers, and how long each waited."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from sqlalchemy.engine import URL

WRITERS = 2
READERS = 1
_WORDS = "vector index swap rows lock table model commit page search update column trigger backfill".split()
_CONNECT_SECONDS = 20
SEARCH = """
SELECT id FROM segments WHERE embedding IS NOT NULL
ORDER BY embedding <=> (SELECT embedding FROM segments WHERE embedding IS NOT NULL LIMIT 1) LIMIT 5
"""


@dataclass(frozen=True)
class Row:
    """What the ledger says of a row."""

    text: str
    label: str


@dataclass
class Waits:
    """Statements that went through, the longest of them, and those that failed with the server."""

    count: int = 0
    longest_seconds: float = 0.0
    cut_off: int = 0
    errors: list[str] = field(default_factory=list)

    def took(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.longest_seconds = max(self.longest_seconds, seconds)


def some_text(chance: random.Random) -> str:
    """A text that is unlikely to come twice; one in twenty has nothing to embed."""
    if chance.random() < 0.05:
        return chance.choice(["", "  ", "\n\t"])
    return " ".join(chance.choices(_WORDS, k=6)) + f" {chance.randrange(10**9)}"


class Application:
    """Writers, each of which alone writes its ids, and readers; in threads of this process, from `with` to its end.

    Attributes:
        ledger: rows by id, as the writers committed them.
        unchanged: ids whose text nobody has written since the beginning.
    """

    def __init__(self, url: URL, seed: int, ledger: dict[int, Row]) -> None:
        self.ledger = ledger
        self.unchanged = set(ledger)
        self.writes, self.reads = Waits(), Waits()
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._seed = seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        works = [lambda n=n: self._write(n) for n in range(WRITERS)] + [self._read] * READERS
        self._threads = [threading.Thread(target=self._guarded, args=(work,), name="application") for work in works]

    def __enter__(self) -> Application:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - reported by the round
            with self._lock:
                self.writes.errors.append(repr(error))

    def _connected(self) -> Any:
        end = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                connection = psycopg2.connect(self._url, application_name="application")
                with connection.cursor() as cursor:
                    cursor.execute("SET log_statement = 'none'")
                connection.commit()
                return connection
            except psycopg2.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _read(self) -> None:
        connection = self._connected()
        while not self._stop.wait(0.01):
            began = time.monotonic()
            try:
                with connection.cursor() as cursor:
                    cursor.execute(SEARCH)
                    cursor.fetchall()
                connection.commit()
                self.reads.took(time.monotonic() - began)
            except psycopg2.Error as error:
                if error.pgcode is not None and not connection.closed:  # a connection that breaks has no code
                    raise
                self.reads.cut_off += 1
                connection = self._connected()
        connection.close()

    def _write(self, number: int) -> None:
        chance = random.Random(f"{self._seed} writer {number}")
        connection = self._connected()
        mine = [identifier for identifier in self.ledger if identifier % WRITERS == number]
        fresh = max(self.ledger) + WRITERS - max(self.ledger) % WRITERS + number
        while not self._stop.wait(0.02):
            identifier = chance.choice(mine)
            if chance.random() < 0.2:
                identifier, fresh = fresh, fresh + WRITERS
                mine.append(identifier)
            before = self.ledger.get(identifier)
            after, statements = _change(chance, identifier, before)
            began = time.monotonic()
            try:
                with connection.cursor() as cursor:
                    for statement, values in statements:
                        cursor.execute(statement, values)
                connection.commit()
            except psycopg2.Error as error:
                if error.pgcode is not None and not connection.closed:  # a connection that breaks has no code
                    raise
                connection = self._connected()
                after = self._found(connection, identifier, {before, after})
                with self._lock:
                    self.writes.cut_off += 1
            else:
                with self._lock:
                    self.writes.took(time.monotonic() - began)
            with self._lock:
                self._enter(identifier, before, after)
                if any(statement.startswith("DELETE") for statement, _ in statements):
                    self.unchanged.discard(identifier)  # it came back without a vector, though with the same empty text
        connection.close()

    def _enter(self, identifier: int, before: Row | None, after: Row | None) -> None:
        if after is None:
            self.ledger.pop(identifier, None)
        else:
            self.ledger[identifier] = after
        if before is None or after is None or before.text != after.text:
            self.unchanged.discard(identifier)

    @staticmethod
    def _found(connection: Any, identifier: int, possible: set[Row | None]) -> Row | None:
        """Which of the two outcomes of a commit that was cut off the table has; a third one would be a lost write."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT text, label FROM segments WHERE id = %s", (identifier,))
            row = cursor.fetchone()
        connection.commit()
        found = Row(*row) if row else None
        assert found in possible, f"row {identifier}: {found}, and only {possible} can be"
        return found


def _change(
    chance: random.Random, identifier: int, before: Row | None
) -> tuple[Row | None, list[tuple[str, tuple[object, ...]]]]:
    """A write to one row: what it will be, and the statements, of one transaction, that make it so."""
    fresh = Row(some_text(chance), f"label {chance.randrange(1000)}")
    insert = ("INSERT INTO segments (id, text, label) VALUES (%s, %s, %s)", (identifier, fresh.text, fresh.label))
    if before is None:
        return fresh, [insert]
    delete = ("DELETE FROM segments WHERE id = %s", (identifier,))
    kind = chance.choices(["text", "label", "both", "delete", "again"], [5, 3, 1, 1, 2])[0]
    if kind == "text":
        return Row(fresh.text, before.label), [
            ("UPDATE segments SET text = %s WHERE id = %s", (fresh.text, identifier))
        ]
    if kind == "label":
        return Row(before.text, fresh.label), [
            ("UPDATE segments SET label = %s WHERE id = %s", (fresh.label, identifier))
        ]
    if kind == "both":
        statement = "UPDATE segments SET text = %s, label = %s WHERE id = %s"
        return fresh, [(statement, (fresh.text, fresh.label, identifier))]
    if kind == "delete":
        return None, [delete]
    return fresh, [delete, insert]
