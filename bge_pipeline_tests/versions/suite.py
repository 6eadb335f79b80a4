"""The tests that are run against each server and with each Python, and what came of them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bge_pipeline_tests.roads import ROOT


def _paths(under: str, *names: str) -> tuple[str, ...]:
    return tuple(f"bge_pipeline_tests/{under}{name}" for name in names)


_LEFT_OUT = "not slow and not thorough and not browser and not frameworks and not real_endpoint"
OF_A_SERVER = (
    "-m",
    f"pgvector and {_LEFT_OUT}",
    *_paths("db/test_", "indexes.py", "index_build.py", "session.py", "privileges.py", "roles.py", "dependents.py"),
    *_paths("db/test_", "trigger.py", "writer.py", "versions.py"),
    *_paths("phases/test_", "expand.py", "backfill.py", "swap.py", "rollback.py", "retire.py", "updates_in_page.py"),
    *_paths("phases/test_", "index_resembles.py", "old_vectors.py", "vector_type.py", "server_limits.py"),
    *_paths("phases/test_", "replication.py", "surroundings.py"),
    *_paths("quality/test_", "index_recall.py", "server_search.py"),
    *_paths("search/test_", "retriever.py", "filters_and_names.py", "hybrid.py"),
    *_paths("", "migrations", "cli/test_commands.py"),
)
"""What a server of another version could answer otherwise: each phase by command and by Alembic, statements for the catalog,
rights, publications, kinds of indexes and of vectors, and search."""
OF_A_PYTHON = (
    "-m",
    _LEFT_OUT,
    *_paths("", "embedding", "search", "report", "compat", "cli", "migrations", "orchestration"),
)
"""Each library that this project calls, and its three roads, which go through the phases and the database."""
_FINISHED = (0, 1)
"""Exit codes of pytest when it ran the tests: https://docs.pytest.org/en/stable/reference/exit-codes.html."""


@dataclass(frozen=True)
class Outcome:
    """How many tests passed, failed and were skipped; of the last, for which reasons."""

    passed: int
    failed: int
    skipped: int
    reasons: tuple[str, ...]


def play(python: Path, arguments: Sequence[str], workers: int, **variables: str) -> Outcome:
    """Run pytest in the project's folder.

    Raises:
        RuntimeError: it did not get as far as to run the tests, or there were none.
    """
    with tempfile.TemporaryDirectory(prefix="bge-pipeline-versions-") as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", f"--numprocesses={workers}", "-q", f"--junitxml={report}", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode
        if code not in _FINISHED:
            raise RuntimeError(f"pytest ended with {code}, expected one of {_FINISHED}: {command}")
        return read_report(report.read_text(encoding="utf-8"))


def read_report(report: str) -> Outcome:
    """What a report in JUnit's format counts."""
    (suite,) = ElementTree.fromstring(report).iter("testsuite")
    tests, failures, errors, skipped = (int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped"))
    reasons = {found.attrib["message"] for found in suite.iter("skipped")}
    return Outcome(tests - failures - errors - skipped, failures + errors, skipped, tuple(sorted(reasons)))
