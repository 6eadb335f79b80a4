"""The tests that are run against each server and with each Python, and what came of them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bge_pipeline_tests.postgres_programs import VARIABLE
from bge_pipeline_tests.roads import ROOT


def _paths(under: str, *names: str) -> tuple[str, ...]:
    return tuple(f"bge_pipeline_tests/{under}{name}" for name in names)


_IN_QUESTION = "not slow and not browser and not frameworks and not real_endpoint and not celery"
_LEFT_OUT = f"not thorough and {_IN_QUESTION}"
OF_A_SERVER = (
    "-m",
    f"pgvector and {_IN_QUESTION}",
    *_paths("db/test_", "session.py", "privileges.py", "roles.py", "versions.py"),
    *_paths("phases/test_", "index_resembles.py", "old_vectors.py", "vector_type.py", "rollback.py", "replication.py"),
    *_paths("", "migrations", "cli/test_commands.py"),
)
"""What a server of another version could answer otherwise: the phases by command and by Alembic, there and back, kinds of
indexes and of vectors, settings of sessions, rights, publications and replicas."""
WHOLE_OF_A_SERVER = ("-m", f"pgvector and {_LEFT_OUT}")
"""All that needs a server with pgvector."""
SHORT_OF_A_SERVER = (
    *_paths("migrations/test_alembic_road.py::test_", "each_revision_takes_the_table_one_phase_further"),
    *_paths("migrations/test_alembic_road.py::test_", "the_printed_script_of_the_swap_runs"),
    *_paths("cli/test_commands.py::test_", "migrate_rollback_migrate_and_retire"),
    *_paths("cli/test_commands.py::test_", "a_table_with_awkward_names_and_uuid_ids_is_migrated"),
    *_paths("phases/test_", "index_resembles.py", "vector_type.py"),
    *_paths("phases/test_swap.py::TestTheExchange::test_", "rights_on_the_column_follow_its_name"),
    *_paths("phases/test_swap.py::TestBesideALiveApplication::test_", "it_comes_to_an_end_in_a_storm_of_writes"),
    *_paths("phases/test_replication.py::test_", "each_kind_of_publication_is_told_apart"),
    *_paths("db/test_privileges.py::test_", "the_remedies_make_a_role_able_to_go_through_all_phases"),
    *_paths("db/test_session.py::test_", "a_database_with_everything_set_otherwise_is_migrated_back_and_forth"),
    *_paths("db/test_", "roles.py"),
)
"""One or two of each of them."""
OF_A_PYTHON = (
    "-m",
    _LEFT_OUT,
    *_paths("", "test_settings.py", "test_postgres_url.py", "compat", "report", "migrations/test_alembic_road.py"),
    *_paths("", "cli/test_commands.py", "orchestration/test_road.py", "search/test_retriever.py"),
    *_paths("embedding/", "test_reference.py", "test_torch_backend.py", "openvino/test_backend.py"),
)
"""What calls the language and the libraries most: settings, encoders, reports, and the three roads through all phases."""
SHORT_OF_A_PYTHON = (
    *_paths("", "test_settings.py", "test_postgres_url.py", "report", "embedding/test_torch_backend.py"),
    *_paths("migrations/test_alembic_road.py::test_", "each_revision_takes_the_table_one_phase_further"),
    *_paths("cli/test_commands.py::test_", "migrate_rollback_migrate_and_retire"),
    *_paths("orchestration/test_road.py::test_", "rollback_and_retire_are_jobs_and_stand_in_the_history"),
)
"""Some of each of them."""
_WHICH_SERVER = (VARIABLE, "TEST_DATABASE_URL")
_MOST_SECONDS = 1_800
"""That a test may take: several versions may be tested at once on a small machine."""
_FINISHED = (0, 1)
"""Exit codes of pytest when it ran the tests: https://docs.pytest.org/en/stable/reference/exit-codes.html."""


@dataclass(frozen=True)
class Outcome:
    """How many tests passed, which failed, how many were skipped and for which reasons."""

    passed: int
    failed: tuple[str, ...]
    skipped: int
    reasons: tuple[str, ...]


def play(python: Path, arguments: Sequence[str], workers: int, **variables: str) -> Outcome:
    """Run pytest in the project's folder.

    Raises:
        RuntimeError: it did not get as far as to run the tests, or there were none.
    """
    with tempfile.TemporaryDirectory(prefix="bge-pipeline-versions-") as folder:
        report = Path(folder) / "report.xml"
        options = [f"--numprocesses={workers}", f"--timeout={_MOST_SECONDS}", f"--junitxml={report}", "-q"]
        command = [python, "-m", "pytest", *options, *arguments]
        environment = {name: value for name, value in os.environ.items() if name not in _WHICH_SERVER} | variables
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code not in _FINISHED:
            raise RuntimeError(f"pytest ended with {code}, expected one of {_FINISHED}: {command}")
        return read_report(report.read_text(encoding="utf-8"))


def read_report(report: str) -> Outcome:
    """What a report in JUnit's format says."""
    (suite,) = ElementTree.fromstring(report).iter("testsuite")
    cases = list(suite.iter("testcase"))
    failed = {_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None}
    skipped = [found.attrib["message"] for case in cases for found in case.iter("skipped")]
    passed = len({_name(case) for case in cases} - failed) - len(skipped)
    return Outcome(passed, tuple(sorted(failed)), len(skipped), tuple(sorted(set(skipped))))


def _name(case: ElementTree.Element) -> str:
    """By which pytest takes a test: `folder/test_file.py::TestClass::test_name[case]`."""
    parts = case.attrib["classname"].split(".")
    of_file = next(n for n in range(len(parts), 0, -1) if n == 1 or (ROOT / f"{'/'.join(parts[:n])}.py").exists())
    return "::".join([f"{'/'.join(parts[:of_file])}.py", *parts[of_file:], case.attrib["name"]])
