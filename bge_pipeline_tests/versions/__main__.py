"""`python -m bge_pipeline_tests.versions servers|pythons`: run the suite, keep what came of it, write docs/versions.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bge_pipeline_tests.postgres_programs import VARIABLE
from bge_pipeline_tests.versions import interpreters
from bge_pipeline_tests.versions.page import DOCUMENT, document
from bge_pipeline_tests.versions.results import keep_result, keep_second_try, read_results
from bge_pipeline_tests.versions.servers import SERVERS, versions_of
from bge_pipeline_tests.versions.suite import (
    OF_A_PYTHON,
    OF_A_SERVER,
    SHORT_OF_A_PYTHON,
    SHORT_OF_A_SERVER,
    WHOLE_OF_A_SERVER,
    Outcome,
    play,
)

_OF_A_SERVER = {"short": SHORT_OF_A_SERVER, "chosen": OF_A_SERVER, "whole": WHOLE_OF_A_SERVER}

app = typer.Typer(add_completion=False, help=__doc__)
Only = Annotated[
    list[str] | None, typer.Option(help="Names of those to run, such as 17-0.8 or 3.12; all, unless named.")
]
Failed = Annotated[bool, typer.Option("--failed", help="Only the tests that failed in the last run, a second time.")]
Short = Annotated[bool, typer.Option("--short", help="A short choice of the tests.")]
Whole = Annotated[bool, typer.Option("--whole", help="Every test that needs a server, some 20 minutes each.")]
Workers = Annotated[int, typer.Option(help="Processes of pytest-xdist.")]


@app.command()
def servers(
    *, only: Only = None, short: Short = False, whole: Whole = False, failed: Failed = False, workers: Workers = 2
) -> None:
    """The tests of the database against each PostgreSQL with pgvector, got from PyPI where it is missing."""
    wrong = 0
    size = "short" if short else "whole" if whole else "chosen"
    for server in SERVERS:
        if only and server.name not in only:
            continue
        programs = server.install()
        postgres, pgvector = versions_of(programs)
        typer.echo(f"PostgreSQL {postgres} with pgvector {pgvector}")
        found = {"postgres": postgres, "pgvector": pgvector, "from": server.requirement, "tests": size}
        run = partial(play, Path(sys.executable), workers=workers, **{VARIABLE: str(programs)})
        wrong += _played("servers", server.name, found, run, _OF_A_SERVER[size], failed=failed)
    sys.exit(wrong > 0)


@app.command()
def pythons(*, only: Only = None, short: Short = False, failed: Failed = False, workers: Workers = 2) -> None:
    """The tests with each Python there is, in an environment of its own; PYTHONS names interpreters by their paths."""
    wrong = 0
    for python in interpreters.interpreters():
        version = interpreters.version_of(python)
        minor = version.rpartition(".")[0]
        if only and minor not in only:
            continue
        typer.echo(f"Python {version}")
        run = partial(play, interpreters.environment_of(python, version), workers=workers)
        found = {"python": version, "tests": "short" if short else "chosen"}
        wrong += _played("pythons", minor, found, run, SHORT_OF_A_PYTHON if short else OF_A_PYTHON, failed=failed)
    sys.exit(wrong > 0)


@app.command()
def page() -> None:
    """Write docs/versions.md from results.json."""
    DOCUMENT.write_text(document(), encoding="utf-8")


def _played(
    kind: str,
    name: str,
    found: dict[str, str],
    run: Callable[[Sequence[str]], Outcome],
    suite: Sequence[str],
    *,
    failed: bool,
) -> int:
    """Run the suite, or what failed in it last time, say and keep what came of it; how many tests failed."""
    if failed:
        tests = read_results()[kind][name]["failed"]
        if not tests:
            return 0
        outcome = run(tests)
        keep_second_try(kind, name, outcome)
    else:
        outcome = run(suite)
        keep_result(kind, name, found, outcome)
    page()
    typer.echo(f"{name}: {outcome.passed} passed, {len(outcome.failed)} failed, {outcome.skipped} skipped")
    return len(outcome.failed)


if __name__ == "__main__":
    app()
