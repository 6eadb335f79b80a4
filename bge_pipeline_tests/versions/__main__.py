"""`python -m bge_pipeline_tests.versions servers|pythons`: run the suite, keep what came of it, write docs/versions.md."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bge_pipeline_tests.postgres_programs import VARIABLE
from bge_pipeline_tests.versions import interpreters
from bge_pipeline_tests.versions.page import DOCUMENT, document
from bge_pipeline_tests.versions.results import keep_result
from bge_pipeline_tests.versions.servers import SERVERS, versions_of
from bge_pipeline_tests.versions.suite import OF_A_PYTHON, OF_A_SERVER, Outcome, play

app = typer.Typer(add_completion=False, help=__doc__)
Only = Annotated[
    list[str] | None, typer.Option(help="Names of those to run, such as 17-0.8 or 3.12; all, unless named.")
]
Tests = Annotated[
    list[str] | None, typer.Argument(help="Arguments of pytest in place of the suite; the result is not kept then.")
]
Workers = Annotated[int, typer.Option(help="Processes of pytest-xdist.")]


@app.command()
def servers(tests: Tests = None, *, only: Only = None, workers: Workers = 2) -> None:
    """The tests of the database against each PostgreSQL with pgvector, got from PyPI where it is missing."""
    failed = 0
    for server in SERVERS:
        if only and server.name not in only:
            continue
        programs = server.install()
        postgres, pgvector = versions_of(programs)
        typer.echo(f"PostgreSQL {postgres} with pgvector {pgvector}")
        outcome = play(Path(sys.executable), tests or OF_A_SERVER, workers, **{VARIABLE: str(programs)})
        found = {"postgres": postgres, "pgvector": pgvector, "from": server.requirement}
        failed += _told("servers", server.name, found, outcome, keep=not tests)
    sys.exit(failed > 0)


@app.command()
def pythons(tests: Tests = None, *, only: Only = None, workers: Workers = 2) -> None:
    """The tests with each Python there is, in an environment of its own; PYTHONS names interpreters by their paths."""
    failed = 0
    for python in interpreters.interpreters():
        version = interpreters.version_of(python)
        minor = version.rpartition(".")[0]
        if only and minor not in only:
            continue
        typer.echo(f"Python {version}")
        inside = interpreters.environment_of(python, version)
        outcome = play(inside, tests or OF_A_PYTHON, workers)
        failed += _told("pythons", minor, {"python": version}, outcome, keep=not tests)
    sys.exit(failed > 0)


@app.command()
def page() -> None:
    """Write docs/versions.md from results.json."""
    DOCUMENT.write_text(document(), encoding="utf-8")


def _told(kind: str, name: str, versions: dict[str, str], outcome: Outcome, *, keep: bool) -> int:
    """Say what came of a run, keep it, and return how many tests failed."""
    typer.echo(f"{name}: {outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped")
    if keep:
        keep_result(kind, name, versions | asdict(outcome))
        page()
    return outcome.failed


if __name__ == "__main__":
    app()
