"""What a seed stands for: road, index, operators, the acts of a migration and the faults that meet them."""

from __future__ import annotations

import random
from dataclasses import dataclass

ROADS = ("command", "alembic", "dagster")
FAULTS = ("kill", "end backend", "crash", "freeze")

MIGRATE = ("ADD COLUMN", "CREATE TRIGGER", "COPY", "UPDATE", "CREATE INDEX", "REINDEX", "LOCK TABLE", "RENAME", "COMMENT",
           "COMMIT", "journal")  # fmt: skip
STATEMENTS = {
    "migrate": MIGRATE,
    "rollback": ("LOCK TABLE", "RENAME", "COMMENT", "COMMIT", "journal"),
    "retire": ("LOCK TABLE", "DROP COLUMN", "COMMIT", "journal"),
}
"""Statements of each act at which a fault may come."""

PATTERNS = {
    "ADD COLUMN": r"ADD COLUMN",
    "CREATE TRIGGER": r"CREATE TRIGGER",
    "COPY": r"COPY pg_temp",
    "UPDATE": r'^\s*UPDATE "public"."segments"',
    "CREATE INDEX": r"CREATE INDEX CONCURRENTLY",
    "REINDEX": r"REINDEX INDEX CONCURRENTLY",
    "LOCK TABLE": r"LOCK TABLE",
    "RENAME": r"RENAME COLUMN",
    "COMMENT": r"COMMENT ON COLUMN",
    "DROP COLUMN": r"DROP COLUMN",
    "journal": r"INSERT INTO .*_journal",
    "COMMIT": r"statement: COMMIT",
}
"""How the server's log shows them."""
CHANGES_SCHEMA = r"(ADD|RENAME|DROP) COLUMN"
"""A COMMIT counts when its session has run one of these before."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to one attempt at an act.

    Attributes:
        kind: of FAULTS.
        statement: at which one it happens, of PATTERNS; None: after `seconds`.
        occurrence: at which occurrence of the statement.
        seconds: after the statement was seen, or after the process began.
        frozen_seconds: for how long a process is stopped.
    """

    kind: str
    statement: str | None
    occurrence: int = 1
    seconds: float = 0.0
    frozen_seconds: float = 2.0

    @property
    def place(self) -> str:
        """Where in an act it is meant to come."""
        return self.statement or "any instant"

    def __str__(self) -> str:
        where = f"{self.statement} {self.occurrence}" if self.statement else f"{self.seconds:.2f} s"
        return f"{self.kind} at {where}"


@dataclass(frozen=True)
class Act:
    """A step of the round, and the faults that its first attempts meet."""

    name: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Scenario:
    """One round."""

    seed: int
    road: str
    method: str
    operators: int
    rows: int
    acts: tuple[Act, ...]

    @classmethod
    def from_seed(cls, seed: int, road: str | None = None) -> Scenario:
        """The same scenario for the same seed."""
        chance = random.Random(seed)
        names = ["migrate"]
        if chance.random() < 0.3:
            names += ["rollback", "migrate"]
        if chance.random() < 0.5:
            names += ["retire"]
        drawn = chance.choices(ROADS, [5, 3, 2])[0]
        return cls(
            seed=seed,
            road=road or drawn,
            method=chance.choice(["ivfflat", "hnsw"]),
            operators=chance.choices([1, 2], [7, 3])[0],
            rows=chance.choice([200, 600, 1_000]),
            acts=tuple(Act(name, tuple(_fault(chance, name) for _ in range(chance.randint(1, 3)))) for name in names),
        )

    def __str__(self) -> str:
        acts = "; ".join(f"{act.name}: {', '.join(map(str, act.faults))}" for act in self.acts)
        operators = "one operator" if self.operators == 1 else "two operators"
        return f"{self.road}, {self.method}, {operators}, {self.rows} rows; {acts}"


def _fault(chance: random.Random, act: str) -> Fault:
    kind = chance.choices(FAULTS, [4, 3, 2, 1])[0]
    if chance.random() < 0.3:
        return Fault(kind, None, 1, chance.uniform(0, 1.5))
    statement = chance.choice(STATEMENTS[act])
    repeated = statement in ("COPY", "UPDATE", "LOCK TABLE", "COMMENT")
    occurrence = chance.randint(1, 2 if statement in ("LOCK TABLE", "COMMENT") else 6) if repeated else 1
    return Fault(kind, statement, occurrence, chance.choice([0, 0, 0.0005, 0.003, 0.02]))
